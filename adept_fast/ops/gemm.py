"""The operators composed of torch's GEMM, for many tokens; a device gives the products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from adept_fast.ops import reference
from adept_fast.quantization.matrix import Matrix


@dataclass(frozen=True)
class Gemm:
    """``ops/reference.py``'s operators on other products; sums and relu² are computed in place, in float32.

    Args:
        layer_norm: of x, gamma, beta and eps.
        project, project_transposed: x · wᵀ and x · w_t as a new float32 tensor.
    """

    layer_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    project: Callable[[Tensor, Matrix], Tensor]
    project_transposed: Callable[[Tensor, Matrix], Tensor]

    def layernorm_qkv(
        self, x: Tensor, gamma: Tensor, beta: Tensor, eps: float, w: Matrix, b: Tensor
    ) -> Tensor:
        return self.project(self.layer_norm(x, gamma, beta, eps), w).add_(b)

    def linear_residual(self, x: Tensor, w: Matrix, b: Tensor, residual: Tensor) -> Tensor:
        return self.project(x, w).add_(b).add_(residual)

    def mlp(
        self,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        eps: float,
        w_up: Matrix,
        b_up: Tensor,
        w_down_t: Matrix,
        b_down: Tensor,
        counts: Tensor | None,
        slots: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        activations = self.layernorm_qkv(x, gamma, beta, eps, w_up, b_up).relu_().square_()
        if slots is not None:
            activations.masked_fill_((slots < 0)[:, None], 0)
        if counts is not None:
            reference.count_active(activations, counts)
        return (
            self.project_transposed(activations, w_down_t)
            .add_(b_down)
            .add_(x if residual is None else residual)
        )

    def lm_head(self, x: Tensor, gamma: Tensor, beta: Tensor, eps: float, w: Matrix) -> Tensor:
        return self.project(self.layer_norm(x, gamma, beta, eps), w)

"""A decode step as one call into C++: the same kernels, without Python between them.

A small model's operators take microseconds each, and so would calling them one by one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adept_fast.quantization.matrix import Matrix, parts_of
from adept_fast.weights import LayerWeights, ModelWeights


class NativeStep:
    """The step of one model on a CPU.

    Args:
        lm_head: the rows of the output matrix that are computed.
        counts: int64 [2], grows by the rows of the down-projections that a step read, and by all there are.
    """

    def __init__(
        self,
        weights: ModelWeights,
        lm_head: Matrix,
        cos: Tensor,
        sin: Tensor,
        eps: float,
        scale: float,
        counts: Tensor,
    ) -> None:
        absent = torch.empty(0, dtype=torch.float32, device="cpu")
        self._layers = [
            absent if tensor is None else tensor
            for layer in weights.layers
            for tensor in _tensors_in_order(layer)
        ]
        self._embedding = weights.embedding
        self._rotary = (cos, sin)
        self._head = (weights.final_gamma, weights.final_beta, *parts_of(lm_head), lm_head.shape[0])
        self._settings = (eps, scale, counts)

    def __call__(self, ids: Tensor, slots: Tensor, positions: Tensor, cache: Tensor) -> Tensor:
        """Logits: float32 [tokens, rows of the lm_head].

        Args:
            ids, slots, positions: int64 [tokens].
            cache: [layer, k/v, slot, head, position, head_dim].
        """
        logits: Tensor = torch.ops.adept_fast.decode_step(
            ids,
            slots,
            positions,
            self._embedding,
            self._layers,
            *self._rotary,
            cache,
            *self._head,
            *self._settings,
        )
        return logits


def _tensors_in_order(layer: LayerWeights) -> tuple[Tensor | None, ...]:
    """As csrc/ops.cpp's decoder_layer reads them."""
    return (
        layer.input_gamma,
        layer.input_beta,
        *parts_of(layer.w_qkv),
        layer.b_qkv,
        layer.q_gamma,
        layer.q_beta,
        layer.k_gamma,
        layer.k_beta,
        *parts_of(layer.w_dense),
        layer.b_dense,
        layer.mlp_gamma,
        layer.mlp_beta,
        *parts_of(layer.w_up),
        layer.b_up,
        *parts_of(layer.w_down_t),
        layer.b_down,
    )

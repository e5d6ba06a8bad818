"""On a CPU: when torch's GEMM is faster than the C++ kernels, and the products that it computes.

The kernels are as fast as a GEMM with many tokens too, but where the processor multiplies bfloat16: torch's
GEMM then takes half the time. It rounds inputs to bfloat16; LayerNorm, activations and residual sums stay
float32.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from adept_fast import extension
from adept_fast.ops import reference
from adept_fast.ops.gemm import Gemm
from adept_fast.quantization.matrix import Matrix

MAX_STREAMED_TOKENS = 16  # up to here, kernels that stream the weights once are faster

_HAS_BFLOAT16 = bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def unavailable(device: torch.device) -> str | None:
    """The reason that the kernels cannot run; None if they can."""
    built = extension.load()
    return None if built.loaded else built.reason


def language() -> str:
    return f"C++, {instruction_set()}"


def has_gemm(w: Matrix) -> bool:
    """Whether torch multiplies many tokens by ``w`` faster than the kernels do."""
    return (
        _HAS_BFLOAT16
        and isinstance(w, Tensor)
        and w.dtype == torch.bfloat16
        and unavailable(w.device) is None
    )


def prefers_gemm(x: Tensor, *matrices: Matrix) -> str | None:
    """The reason to leave products of x to torch's GEMM, for inputs in float32; None for the kernel."""
    if x.shape[0] <= MAX_STREAMED_TOKENS or x.dtype != torch.float32 or not all(map(has_gemm, matrices)):
        return None
    return f"faster for {x.shape[0]} tokens, above {MAX_STREAMED_TOKENS}"


def prefers_gemm_mlp(x: Tensor, w_up: Matrix, w_down_t: Matrix, counts: Tensor | None) -> str | None:
    """As ``prefers_gemm``; a decode step, which counts active neurons, stays with the kernels."""
    return None if counts is not None else prefers_gemm(x, w_up, w_down_t)


def _project(x: Tensor, w: Matrix) -> Tensor:
    assert isinstance(w, Tensor)
    return _of_two_rows(x, w.dtype, lambda rows: F.linear(rows, w))


def _project_transposed(x: Tensor, w_t: Matrix) -> Tensor:
    assert isinstance(w_t, Tensor)
    return _of_two_rows(x, w_t.dtype, lambda rows: rows @ w_t)


def _of_two_rows(x: Tensor, dtype: torch.dtype, product: Callable[[Tensor], Tensor]) -> Tensor:
    """The product of at least two rows: torch adds up a single one in another order."""
    rows = x.to(dtype)
    return product(rows).float() if len(x) != 1 else product(rows.expand(2, -1))[:1].float()


gemm = Gemm(reference.layernorm, _project, _project_transposed)


def instruction_set() -> str:
    """The one in use: ``avx512_vnni``, ``avx512``, ``avx2`` or ``portable``."""
    from adept_fast import _C

    name: str = _C.instruction_set()
    return name


def use_instruction_set(name: str) -> None:
    """Raises ValueError if this machine cannot run it."""
    from adept_fast import _C

    if not _C.use_instruction_set(name):
        runnable = _C.runnable_instruction_sets().replace(",", ", ")
        raise ValueError(f"ADEPT_FAST_CPU is {name!r}; this machine runs {runnable}")


if extension.load().loaded and os.environ.get("ADEPT_FAST_CPU"):
    use_instruction_set(os.environ["ADEPT_FAST_CPU"])

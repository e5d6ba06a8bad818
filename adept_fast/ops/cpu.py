"""On a CPU: when torch's GEMM is faster than the C++ kernels, and the products that it computes.

A kernel reads a matrix once for all tokens of a call. With many tokens arithmetic limits a product instead of
memory. Where the processor multiplies bfloat16, torch's GEMM does so faster than in float32. Inputs are
rounded to the weights' dtype, as torch itself would; LayerNorm, activations and residual sums stay float32.
For float16 torch has no fast product on a CPU, so those weights stay with the kernels.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adept_fast import extension
from adept_fast.ops import kernels, reference
from adept_fast.ops.gemm import Gemm
from adept_fast.quantization.matrix import Matrix, QuantizedMatrix, parts_of

MAX_STREAMED_TOKENS = 16  # up to here, kernels that stream the weights once are faster
MAX_SPARSE_TOKENS = 48  # up to here, the sparse down-projection is faster than dequantizing and a GEMM

_HAS_BFLOAT16 = bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def unavailable(device: torch.device) -> str | None:
    """The reason that the kernels cannot run; None if they can."""
    built = extension.load()
    return None if built.loaded else built.reason


def language() -> str:
    return f"C++, {instruction_set()}"


def prefers_gemm(x: Tensor, w: Matrix) -> str | None:
    """The reason to leave x · wᵀ to torch's GEMM, for inputs in float32; None for the kernel."""
    if x.shape[0] <= MAX_STREAMED_TOKENS or isinstance(w, QuantizedMatrix) or x.dtype != torch.float32:
        return None
    if w.dtype == torch.float32 or (w.dtype == torch.bfloat16 and _HAS_BFLOAT16):
        return f"faster for {x.shape[0]} tokens, above {MAX_STREAMED_TOKENS}"
    return None


def prefers_gemm_down(x: Tensor, w_down_t: Matrix, counts: Tensor | None) -> str | None:
    """As ``prefers_gemm``, for the down-projection; the kernel skips inactive neurons, and counts them."""
    if counts is not None:
        return None
    if not isinstance(w_down_t, QuantizedMatrix):
        return prefers_gemm(x, w_down_t)
    if x.shape[0] <= MAX_SPARSE_TOKENS or x.dtype != torch.float32:
        return None
    return f"faster for {x.shape[0]} tokens, above {MAX_SPARSE_TOKENS}"


class _CpuGemm(Gemm):
    def layernorm_qkv(self, *args: Any, **kwargs: Any) -> Tensor:
        """Also an MLP's up-projection, for which the kernel may be faster than a GEMM."""
        x, gamma, beta, eps, w, b = args
        if prefers_gemm(x, w) is not None:
            return super().layernorm_qkv(*args, **kwargs)
        result: Tensor = kernels.operators.layernorm_qkv(x, gamma, beta, eps, *parts_of(w), b)
        return result


def _project(x: Tensor, w: Matrix) -> Tensor:
    assert isinstance(w, Tensor)
    return F.linear(x.to(w.dtype), w).float()


def _project_transposed(x: Tensor, w_t: Matrix) -> Tensor:
    weights = _dequantized(w_t) if isinstance(w_t, QuantizedMatrix) else w_t
    return (x.to(weights.dtype) @ weights).float()


def _dequantized(w_t: QuantizedMatrix) -> Tensor:
    dtype = torch.bfloat16 if _HAS_BFLOAT16 else torch.float32
    weights = torch.empty(w_t.shape, dtype=dtype, device="cpu")  # [intermediate, hidden]
    kernels.operators.dequantize_transposed(*parts_of(w_t), weights)
    return weights


gemm = _CpuGemm(reference.layernorm, _project, _project_transposed)


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

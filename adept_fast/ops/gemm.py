"""Products of many tokens with weights on a CPU, by torch's GEMM.

Where the processor multiplies bfloat16, torch's GEMM does so faster than in float32. Inputs are
rounded to the weights' dtype, as torch itself would; LayerNorm, relu² units and residual sums stay float32.
Of float16 torch has no fast product on a CPU, so those weights stay with the kernels in C++.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adept_fast.quantization.matrix import Matrix, QuantizedMatrix

FEW_TOKENS = 16  # up to here weights are worth streaming past the tokens
FEW_TOKENS_PACKED = 48  # and up to here, rows of a packed down-projection without turning them into floats

_HAS_BFLOAT16 = bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def is_better(x: Tensor, w: Matrix) -> bool:
    """Whether x · wᵀ should be computed here, where results are float32 as the model's inputs are."""
    if x.shape[0] <= FEW_TOKENS or isinstance(w, QuantizedMatrix) or x.dtype != torch.float32:
        return False
    return w.dtype == torch.float32 or (w.dtype == torch.bfloat16 and _HAS_BFLOAT16)


def is_better_for_units(x: Tensor, w_t: Matrix) -> bool:
    """Whether the down-projection of x's units should be computed here."""
    if isinstance(w_t, QuantizedMatrix):
        return x.shape[0] > FEW_TOKENS_PACKED and x.dtype == torch.float32
    return is_better(x, w_t)


def layernorm_qkv(x: Tensor, gamma: Tensor, beta: Tensor, eps: float, w: Matrix, b: Tensor) -> Tensor:
    return _linear(F.layer_norm(x, gamma.shape, gamma, beta, eps), w).add_(b)


def linear_residual(x: Tensor, w: Matrix, b: Tensor, residual: Tensor) -> Tensor:
    return _linear(x, w).add_(b).add_(residual)


def lm_head(x: Tensor, gamma: Tensor, beta: Tensor, eps: float, w: Matrix) -> Tensor:
    return _linear(F.layer_norm(x, gamma.shape, gamma, beta, eps), w)


def down(units: Tensor, w_t: Matrix) -> Tensor:
    """units · w_t: float32 [tokens, out], for w_t of [units, out], packed or not."""
    weights = _floats(w_t) if isinstance(w_t, QuantizedMatrix) else w_t
    return (units.to(weights.dtype) @ weights).float()


def _floats(w_t: QuantizedMatrix) -> Tensor:
    dtype = torch.bfloat16 if _HAS_BFLOAT16 else torch.float32
    weights = torch.empty(w_t.shape, dtype=dtype, device="cpu")  # [units, out]
    torch.ops.adept_fast.dequantize_transposed(w_t.values, w_t.scales, weights)
    return weights


def _linear(x: Tensor, w: Matrix) -> Tensor:
    assert isinstance(w, Tensor)
    return F.linear(x.to(w.dtype), w).float()

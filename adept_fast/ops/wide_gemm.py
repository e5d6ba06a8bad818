"""Products of many tokens with a GPU's packed weights: turned into floats block by block, then torch's GEMM.

Inputs and weights are rounded to the matrix's product dtype, sums are float32. Each token's inputs are
brought near 1 by a power of two, which changes no bit of the result but where it saves it from float16's
end: relu² units pass that, and so might sums of weights in 8 bits, whose scales come after them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from adept_fast.quantization.layout_gpu import GpuMatrix

_BLOCK_ELEMENTS = 1 << 24
WORKSPACE_BYTES = 6 * _BLOCK_ELEMENTS  # of a block's 4 bits, at once: their bytes twice, floats twice


def project(x: Tensor, w: GpuMatrix) -> Tensor:
    """x · wᵀ: float32 [tokens, out], for w of [out, in]."""
    narrow, exponents = _narrowed(x, w)
    out = x.new_empty(x.shape[0], w.shape[0], dtype=torch.float32)
    for rows in _blocks(w):
        out[:, rows] = F.linear(narrow, w.unscaled(rows.start, rows.stop, w.spec.product_dtype))
    return _scaled(out, w, exponents)


def project_transposed(x: Tensor, w_t: GpuMatrix) -> Tensor:
    """x · w_t: float32 [tokens, out], for w_t of [in, out]."""
    narrow, exponents = _narrowed(x, w_t)
    out = x.new_zeros(x.shape[0], w_t.shape[1], dtype=torch.float32)
    for rows in _blocks(w_t):
        out += narrow[:, rows] @ w_t.unscaled(rows.start, rows.stop, w_t.spec.product_dtype)
    return _scaled(out, w_t, exponents)


def _blocks(w: GpuMatrix) -> Iterator[slice]:
    step = max(1, _BLOCK_ELEMENTS // max(1, w.shape[1]))
    for start in range(0, w.shape[0], step):
        yield slice(start, min(start + step, w.shape[0]))


def _narrowed(x: Tensor, w: GpuMatrix) -> tuple[Tensor, Tensor]:
    """x in the products' dtype, and int32 [tokens, 1]: it stands for 2 to that power times as much."""
    exponents = torch.frexp(x.float().abs().amax(-1, keepdim=True)).exponent
    if w.bits == 8:
        inputs = w.shape[0] if w.spec.transposed else w.shape[1]
        exponents = (
            exponents + int(inputs * w.spec.format.max_value).bit_length() - 15
        )  # so no sum passes 2¹⁵
    exponents = exponents.clamp(min=-100)  # of less than 2⁻¹⁰⁰ nothing is left, as float32 has no 2¹³⁰
    return torch.ldexp(x.float(), -exponents).to(w.spec.product_dtype), exponents


def _scaled(out: Tensor, w: GpuMatrix, exponents: Tensor) -> Tensor:
    if w.bits == 8:
        out *= w.scales
    return torch.ldexp(out, exponents)

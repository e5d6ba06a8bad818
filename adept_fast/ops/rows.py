"""The rows of a GEMM before and after it, in plain PyTorch: the definitions of the kernels that do the same.

A GEMM in 16 bits gets each token's inputs divided by a power of two, so that none exceeds 1. That is exact,
and keeps float16 from overflowing: relu² exceeds its range, and so could sums of 8-bit weights, whose scales
are applied after the sum. A row depends on its token alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST, _MOST = -100, 126  # of exponents; smaller inputs become 0, as no float scales them up


def prepare_rows(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    raised: int,
    rows: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The inputs of a GEMM, in ``dtype`` [rows, columns], and the powers of the tokens, float32 [tokens].

    Args:
        x: float32 [tokens, columns].
        gamma, beta: of a LayerNorm, float32 [columns], or None for none.
        raised: no input exceeds 2^-raised.
        rows: those behind the tokens' are 0.

    In float32 every power is 1.
    """
    normed = x.float() if gamma is None else F.layer_norm(x.float(), gamma.shape, gamma, beta, eps)
    return _narrowed(normed, raised, rows, dtype)


def activate_rows(
    product: Tensor, powers: Tensor, scales: Tensor | None, bias: Tensor, raised: int, rows: int
) -> tuple[Tensor, Tensor]:
    """``prepare_rows`` of relu² of the outputs that ``finish_rows`` returns, in the dtype of the product."""
    activations = finish_rows(product, powers, scales, bias, True, None)
    return _narrowed(activations, raised, rows, product.dtype)


def finish_rows(
    product: Tensor,
    powers: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    relu_squared: bool,
    residual: Tensor | None,
) -> Tensor:
    """relu²?(sums · scales · powers + bias) + residual: float32 [tokens, columns].

    Args:
        product: [rows, columns], a row or more for each token, or [parts, rows, columns] to be added up.
        powers: float32 [tokens], as ``prepare_rows`` returns them.
        scales, bias: float32 [columns], or None.
        residual: float32 [tokens, columns], or None.
    """
    parts = product if product.dim() == 3 else product[None]
    outputs = parts[0, : len(powers)].float()
    for part in parts[1:]:
        outputs = outputs + part[: len(powers)]
    if scales is not None:
        outputs = outputs * scales
    outputs = outputs * powers[:, None]
    if bias is not None:
        outputs = outputs + bias
    if relu_squared:
        outputs = outputs.relu().square()
    return outputs if residual is None else outputs + residual


def _narrowed(x: Tensor, raised: int, rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """float32 x in ``dtype``, divided by the powers of two, and these."""
    tokens, columns = x.shape
    exponents = torch.zeros(tokens, dtype=torch.int32, device=x.device)
    if dtype != torch.float32 and x.numel():
        limits = torch.finfo(torch.float32)
        largest = x.abs().amax(-1).clamp(limits.tiny, limits.max)
        exponents = (torch.frexp(largest).exponent + raised).clamp(_LEAST, _MOST)
    one = torch.ones(tokens, dtype=torch.float32, device=x.device)
    narrow = x.new_zeros(rows, columns, dtype=dtype)
    narrow[:tokens] = x * torch.ldexp(one, -exponents)[:, None]
    return narrow, torch.ldexp(one, exponents)

"""Numbers of tokens at which products change from kernels to GEMMs that round differently."""

from __future__ import annotations

import torch
from torch import Tensor

from adept_fast import extension
from adept_fast.ops import cuda, gemm
from adept_fast.quantization.matrix import Matrix


def token_bounds(w: Matrix) -> tuple[int, ...]:
    """The numbers of tokens up to which other code multiplies with ``w`` than above them.

    Without the bounds between which results differ by the rounding of float32 sums only.
    """
    if w.device.type == "cuda":
        return (cuda.MOST_TOKENS,)
    if not extension.load().loaded:
        return ()
    if not isinstance(w, Tensor):
        return (gemm.FEW_TOKENS_PACKED,)
    return (gemm.FEW_TOKENS,) if w.dtype == torch.bfloat16 else ()

"""Reads a part of a tensor whose elements lie in a file one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from adept_fast.checkpoint.base import tensor_of


def read_part(
    view: Callable[[int, int], memoryview],
    dtype: torch.dtype,
    shape: tuple[int, ...],
    dimension: int,
    start: int,
    stop: int,
) -> Tensor:
    """The slices from ``start`` to ``stop`` along a dimension of a contiguous tensor of ``shape``.

    ``view`` returns bytes of the tensor, from an offset on and of a length; no others are read.
    """
    slice_bytes = math.prod(shape[dimension + 1 :]) * dtype.itemsize
    rows, row_bytes = math.prod(shape[:dimension]), shape[dimension] * slice_bytes
    first, length = start * slice_bytes, (stop - start) * slice_bytes
    part_shape = (*shape[:dimension], stop - start, *shape[dimension + 1 :])
    if rows == 1:
        return tensor_of(view(first, length), dtype).view(part_shape)
    contents = memoryview(bytearray(rows * length))
    for row in range(rows):
        contents[row * length : (row + 1) * length] = view(row * row_bytes + first, length)
    return tensor_of(contents, dtype).view(part_shape)

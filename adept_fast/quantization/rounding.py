"""Floats → rounded weights and scales: the definition of each format, the same on every device.

The scale of a group of 4-bit weights is that candidate of a few which has the smallest squared error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from adept_fast.quantization.formats import MatrixSpec, QuantizationError, WeightFormat

BLOCK_ROWS = 16  # blocks of rows begin at multiples of this
_BLOCK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 22}  # per block; on a CPU a block stays in the cache

# Clipping a group's extremes reduces its error: to within 0.1% of forty candidates' on gaussian groups of 32.
_SPANS = (0.8, 0.84, 0.88, 0.92, 0.96, 1.0, 1.04, 1.08)

# From the largest magnitudes of the outputs in a part of a matrix to those of the whole matrix.
Agree: TypeAlias = Callable[[Tensor], Tensor]


def of_whole_matrix(largest: Tensor) -> Tensor:
    """``Agree`` for a matrix that is no part of another one."""
    return largest


@dataclass(frozen=True)
class RoundedRows:
    """Some rows of a matrix, rounded, in plain order.

    ``values`` are [rows, padded columns]: int8, float8, or uint8 from 0 to 15. ``scales`` have the rows' part
    of ``MatrixSpec.scales_shape``.
    """

    format: WeightFormat
    values: Tensor
    scales: Tensor

    def weights(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[rows, padded columns] in ``dtype``, exact in float32."""
        if self.format.group_size is None:
            return self.values.to(dtype) * self.scales.to(dtype)
        grouped = self.values.to(dtype).unflatten(1, (-1, self.format.group_size))  # [rows, groups, group]
        weights: Tensor = grouped.sub_(8).mul_(self.scales.to(dtype)[..., None]).flatten(1)
        return weights

    def columns(self, start: int, stop: int) -> RoundedRows:
        """Some columns, whole groups of them."""
        group = self.format.group_size
        scales = self.scales
        if group is not None:
            scales = scales[:, start // group : -(-stop // group)]
            stop = -(-stop // group) * group
        elif scales.shape[1] > 1:
            scales = scales[:, start:stop]
        return RoundedRows(self.format, self.values[:, start:stop], scales)

    def to(self, device: torch.device) -> RoundedRows:
        return RoundedRows(self.format, self.values.to(device), self.scales.to(device))


def row_blocks(spec: MatrixSpec, device: torch.device) -> Iterator[tuple[int, int]]:
    """The first row and the end of each block."""
    rows, elements = spec.shape[0], _BLOCK_ELEMENTS[device.type]
    step = max(BLOCK_ROWS, elements // max(1, spec.padded_columns) // BLOCK_ROWS * BLOCK_ROWS)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def round_rows(
    matrix: Tensor, spec: MatrixSpec, agree: Agree = of_whole_matrix
) -> Iterator[tuple[int, RoundedRows]]:
    """Rounds a matrix of ``spec.shape`` block by block: the first row of each block, and its rounded rows.

    The matrix may have any float dtype and strides; blocks are on its device. If it is a part of
    another matrix, ``agree`` makes a scale of an output that of the whole: float32 [outputs] → the same.

    Raises QuantizationError if it is not a matrix, or holds a NaN, an infinity or too large a number.
    """
    if tuple(matrix.shape) != spec.shape or not matrix.is_floating_point():
        raise QuantizationError(
            f"has shape {list(matrix.shape)} and dtype {matrix.dtype}; "
            f"expected a matrix of floats, {list(spec.shape)}"
        )
    by_column = spec.format.group_size is None and spec.transposed
    column_scales = None
    if by_column:
        column_scales = _output_scales(agree(_column_magnitudes(matrix, spec)), spec.format)[None]
    padding = spec.padded_columns - spec.shape[1]
    for start, stop in row_blocks(spec, matrix.device):
        block = matrix[start:stop].float().contiguous()  # [rows, columns]
        if spec.format.group_size is None:
            scales = column_scales
            if scales is None:
                scales = _output_scales(agree(block.abs().amax(1)), spec.format)[:, None]
            yield start, RoundedRows(spec.format, _round_eight_bits(block, scales, spec.format), scales)
        else:
            padded = F.pad(block, (0, padding)) if padding else block
            yield start, _round_groups(padded.unflatten(1, (-1, spec.format.group_size)), spec.format)


def _column_magnitudes(matrix: Tensor, spec: MatrixSpec) -> Tensor:
    """The largest magnitude of each column: float32 [columns]."""
    largest = matrix.new_zeros(matrix.shape[1], dtype=torch.float32)
    for start, stop in row_blocks(spec, matrix.device):
        torch.maximum(largest, matrix[start:stop].abs().amax(0).float(), out=largest)
    return largest


def _output_scales(largest: Tensor, weights: WeightFormat) -> Tensor:
    """The scales of outputs from their largest magnitudes, both float32 [outputs].

    Scales of fp8 have 20 bits, and a float8 has 4. So every product is exact in float32, and weights that are
    unpacked and packed again do not change.
    """
    _check_magnitudes(largest, weights.max_weight)
    scales = largest / weights.max_value
    if weights.values_dtype == torch.int8:
        return scales
    return ((scales.view(torch.int32) + 8) & ~15).view(torch.float32)


def _round_eight_bits(block: Tensor, scales: Tensor, weights: WeightFormat) -> Tensor:
    """The nearest Q of each weight, as ``block``."""
    quotients = block / scales.masked_fill(scales == 0, 1)
    if not weights.values_dtype.is_floating_point:
        quotients.round_()
    # A float8 past its range is a NaN, not an infinity.
    return quotients.clamp_(-weights.max_value, weights.max_value).to(weights.values_dtype)


def _round_groups(grouped: Tensor, weights: WeightFormat) -> RoundedRows:
    """The Q of each weight of groups [rows, groups, group], and their scales.

    Q = 0 means −8, and Q = 15 only 7: the sign of the scale makes Q = 0 represent the group's extreme.
    """
    magnitudes = grouped.abs()
    _check_magnitudes(magnitudes, weights.max_weight)  # all of them, since argmax may skip a NaN
    extremes = grouped.gather(-1, magnitudes.argmax(-1, keepdim=True))  # [rows, groups, 1]
    scales = torch.zeros_like(extremes)
    lowest = torch.full_like(extremes, float("inf"))
    for span in _SPANS:
        rounded = _round_signed(grouped, _as_float16(extremes * (span / -8)))
        squares = rounded.square().sum(-1, keepdim=True)
        products = (grouped * rounded).sum(-1, keepdim=True)
        # The best scale for these integers. The squares of the weights would complete its squared error.
        scale = _as_float16(products / squares.clamp(min=1))
        error = scale * (scale * squares - 2 * products)
        better = error < lowest
        scales = torch.where(better, scale, scales)
        lowest = torch.where(better, error, lowest)
    values = (_round_signed(grouped, scales) + 8).to(torch.uint8).flatten(1)
    return RoundedRows(weights, values, scales[..., 0].half())


def _round_signed(grouped: Tensor, scales: Tensor) -> Tensor:
    """The nearest of −8 to 7 for each weight, 0 if the scale is 0."""
    inverses = scales.reciprocal().masked_fill_(scales == 0, 0)
    return (grouped * inverses).round_().clamp_(-8, 7)


def _as_float16(numbers: Tensor) -> Tensor:
    """The numbers rounded to float16, clamped to its range."""
    largest = torch.finfo(torch.float16).max
    return numbers.clamp(-largest, largest).half().float()


def _check_magnitudes(magnitudes: Tensor, limit: float) -> None:
    """Raises QuantizationError if a magnitude exceeds ``limit`` or is not finite."""
    largest = magnitudes.amax().item() if magnitudes.numel() else 0.0
    if not largest < float("inf"):
        raise QuantizationError("has a NaN or an infinity")
    if largest > limit:
        raise QuantizationError(f"holds a weight of magnitude {largest:.6g}; this format ends at {limit:.6g}")

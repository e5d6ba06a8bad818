"""row_major: packed weights row by row in plain order, for files that every device reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adept_fast.quantization.formats import MatrixSpec
from adept_fast.quantization.matrix import QuantizedMatrix, Slices, Stored
from adept_fast.quantization.rounding import RoundedRows


@dataclass(frozen=True)
class RowMajorMatrix(QuantizedMatrix):
    """A packed matrix row by row. Rows of 4 bits are whole groups, padded with weights of 0."""

    layout: ClassVar[str] = "row_major"

    @classmethod
    def stored(cls, spec: MatrixSpec) -> tuple[Stored, Stored]:
        weights, (rows, columns) = spec.format, spec.shape
        scales: tuple[int, ...] = spec.scales_shape
        if weights.group_size is None:
            scales = (columns if spec.transposed else rows,)
        values = (rows, spec.padded_columns * weights.bits // 8)
        return (values, weights.values_dtype), (scales, weights.scales_dtype)

    @staticmethod
    def join_nibbles(rounded: Tensor) -> Tensor:
        """[rows, columns] of Q → bytes [rows, columns / 2], the first of two weights in the low nibble."""
        pairs: Tensor = rounded.unflatten(1, (-1, 2))
        return pairs[:, :, 0] | pairs[:, :, 1] << 4

    @staticmethod
    def split_nibbles(packed: Tensor) -> Tensor:
        """The inverse of ``join_nibbles``."""
        return torch.stack((packed & 15, packed >> 4), -1).flatten(1)

    def put(self, start: int, rows: RoundedRows) -> None:
        at = slice(start, start + len(rows.values))
        self.values[at] = rows.values if self.bits == 8 else self.join_nibbles(rows.values)
        if self.spec.format.group_size is not None:
            self.scales[at] = rows.scales
        elif self.spec.transposed:
            self.scales.copy_(rows.scales[0])
        else:
            self.scales[at] = rows.scales[:, 0]

    def rounded(self, start: int, stop: int) -> RoundedRows:
        values, weights = self.values[start:stop], self.spec.format
        if weights.group_size is not None:
            return RoundedRows(weights, self.split_nibbles(values), self.scales[start:stop])
        scales = self.scales[None] if self.spec.transposed else self.scales[start:stop, None]
        return RoundedRows(weights, values, scales)

    def rows(self, count: int) -> RowMajorMatrix:
        return self.part(range(min(count, self.shape[0])), range(self.shape[1]))

    @classmethod
    def slices(cls, spec: MatrixSpec, rows: range, columns: range) -> tuple[Slices, Slices]:
        weights, of_rows = spec.format, slice(rows.start, rows.stop)
        first = columns.start * weights.bits // 8
        bytes_of_rows = weights.padded(len(columns)) * weights.bits // 8
        values = of_rows, slice(first, first + bytes_of_rows)
        if weights.group_size is not None:
            group = columns.start // weights.group_size
            return values, (of_rows, slice(group, group + weights.padded(len(columns)) // weights.group_size))
        return values, (slice(columns.start, columns.stop) if spec.transposed else of_rows,)

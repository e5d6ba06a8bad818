"""cpu_tiled: the order in which the CPU kernels read packed weights; docs/quantization.md draws it.

[out, in] matrices lie in tiles of 16 rows, transposed ones row by row, with the columns of each 64 bytes
interleaved. Padding represents weights of 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from adept_fast.quantization.formats import FORMATS, MatrixSpec, QuantizationError, WeightFormat
from adept_fast.quantization.matrix import QuantizedMatrix, Slices, Stored
from adept_fast.quantization.rounding import RoundedRows

TILE = 16  # rows, whose weights of the same columns are adjacent
_TILED_COLUMNS = 64  # the columns of tiles are padded to a multiple of this
_TRANSPOSED_COLUMNS = 128  # and those of transposed matrices to a multiple of this
_GROUP = 32  # weights that share a scale in memory; formats of larger groups repeat theirs


@dataclass(frozen=True)
class TiledMatrix(QuantizedMatrix):
    """A packed matrix as the CPU kernels read it."""

    layout: ClassVar[str] = "cpu_tiled"

    @classmethod
    def holds(cls, weights: WeightFormat) -> bool:
        formats = (weights, FORMATS[weights.lm_head])
        return not any(known.values_dtype.is_floating_point for known in formats)

    @classmethod
    def stored(cls, spec: MatrixSpec) -> tuple[Stored, Stored]:
        weights, rows, columns = spec.format, spec.shape[0], _padded(spec)
        if weights.values_dtype.is_floating_point:
            raise QuantizationError(f"{weights.name} has no layout for a CPU")
        tiles = -(-rows // TILE)
        values: tuple[int, ...] = (rows, columns * weights.bits // 8)
        if not spec.transposed:
            values = (tiles, columns * weights.bits // 32, TILE, 4)
        if weights.group_size is None:
            scales: tuple[int, ...] = (columns,) if spec.transposed else (TILE * tiles,)
        else:
            groups = columns // _GROUP
            scales = (rows, 1, groups) if spec.transposed else (tiles, groups, 1, TILE)
        return (values, weights.values_dtype), (scales, weights.scales_dtype)

    def put(self, start: int, rows: RoundedRows) -> None:
        spec, count = self.spec, len(rows.values)
        values = _resized(rows.values, 0 if spec.format.bits == 8 else 8, _padded(spec), spec)
        if spec.format.group_size is not None:
            repeated = rows.scales.repeat_interleave(spec.format.group_size // _GROUP, 1)
            scales = _resized(repeated, 0, _padded(spec) // _GROUP, spec)
        tiles = slice(start // TILE, start // TILE + -(-count // TILE))
        if spec.transposed:
            self.values[start : start + count] = _interleaved(values, spec.format.bits)
            if spec.format.group_size is None:
                self.scales.zero_()[: spec.shape[1]] = rows.scales[0]
            else:
                self.scales[start : start + count, 0] = scales
        else:
            self.values[tiles] = _tiled(values, spec.format.bits)
            if spec.format.group_size is None:
                self.scales[TILE * tiles.start : TILE * tiles.stop] = _resized(rows.scales, 0, 1, spec)[:, 0]
            else:
                self.scales[tiles, :, 0] = scales.view(-1, TILE, scales.shape[1]).transpose(1, 2)

    def rounded(self, start: int, stop: int) -> RoundedRows:
        spec, scales = self.spec, self.scales
        first, last = start // TILE, -(-stop // TILE)
        rows = slice(start, stop) if spec.transposed else slice(start - TILE * first, stop - TILE * first)
        if spec.transposed:
            values = _deinterleaved(self.values[rows], spec.format.bits)
        else:
            values = _untiled(self.values[first:last], spec.format.bits)[rows]
        values = values[:, : spec.padded_columns]
        if spec.format.group_size is None:
            scales = scales[None, : spec.shape[1]] if spec.transposed else scales[start:stop, None]
        else:
            if not spec.transposed:
                scales = scales[first:last].permute(0, 3, 2, 1).flatten(0, 1)  # [rows, 1, groups]
            scales = scales[rows, 0, :: spec.format.group_size // _GROUP][:, : spec.scales_shape[1]]
            values = F.pad(values, (0, spec.padded_columns - values.shape[1]), value=8)
        return RoundedRows(spec.format, values, scales)

    def rows(self, count: int) -> TiledMatrix:
        """The first ``count`` rows, at most all, as a view, of whole tiles if rows are tiled."""
        return self.part(range(min(count, self.shape[0])), range(self.shape[1]))

    @classmethod
    def slices(cls, spec: MatrixSpec, rows: range, columns: range) -> tuple[Slices, Slices] | None:
        """Of whole rows, which begin a tile if rows are tiled."""
        if len(columns) != spec.shape[1] or (rows.start % TILE and not spec.transposed):
            return None
        by_output = spec.format.group_size is None
        if spec.transposed:
            of_rows = slice(rows.start, rows.stop)
            return (of_rows,), (slice(None) if by_output else of_rows,)
        first, last = rows.start // TILE, -(-rows.stop // TILE)
        return (slice(first, last),), (slice(TILE * first, TILE * last) if by_output else slice(first, last),)


def _padded(spec: MatrixSpec) -> int:
    """The columns in memory."""
    multiple = _TRANSPOSED_COLUMNS if spec.transposed else _TILED_COLUMNS
    return -(-spec.shape[1] // multiple) * multiple


def _resized(numbers: Tensor, padding: int, columns: int, spec: MatrixSpec) -> Tensor:
    """[rows, columns], padded with ``padding`` to whole tiles, or cut, to ``columns``."""
    rows = 0 if spec.transposed else -len(numbers) % TILE
    return F.pad(numbers, (0, columns - numbers.shape[1], 0, rows), value=padding).contiguous()


def _tiled(rounded: Tensor, bits: int) -> Tensor:
    """[rows, columns] of Q → bytes in tiles [tiles, columns · bits / 32, 16, 4]."""
    columns = rounded.shape[1]
    if bits == 8:
        return rounded.view(-1, TILE, columns // 4, 4).transpose(1, 2)
    halves = rounded.view(-1, TILE, columns // 8, 2, 4)
    return (halves[:, :, :, 0] | halves[:, :, :, 1] << 4).transpose(1, 2)


def _untiled(tiles: Tensor, bits: int) -> Tensor:
    """The inverse of ``_tiled``."""
    rows = tiles.transpose(1, 2)  # [tiles, 16, columns · bits / 32, 4]
    if bits == 4:
        rows = torch.stack((rows & 15, rows >> 4), dim=3)  # [tiles, 16, columns / 8, 2, 4]
    return rows.flatten(2).flatten(0, 1)


def _interleaved(rounded: Tensor, bits: int) -> Tensor:
    """[rows, columns] of Q → interleaved bytes [rows, columns · bits / 8]."""
    rows = len(rounded)
    if bits == 4:
        halves = rounded.view(rows, -1, 2, 64)  # [rows, blocks, 2, 64]
        rounded = halves[:, :, 0] | halves[:, :, 1] << 4
    return rounded.reshape(rows, -1, 4, 4, 4).transpose(2, 3).flatten(1)


def _deinterleaved(packed: Tensor, bits: int) -> Tensor:
    """The inverse of ``_interleaved``."""
    blocks = packed.view(len(packed), packed.shape[1] // 64, 4, 4, 4)
    columns = blocks.transpose(2, 3).flatten(2)  # [rows, blocks, 64]
    if bits == 4:
        columns = torch.stack((columns & 15, columns >> 4), dim=2)  # [rows, blocks, 2, 64]
    return columns.flatten(1)

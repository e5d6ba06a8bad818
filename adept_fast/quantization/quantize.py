"""Matrices in 8 or 4 bits a weight: how they are rounded, and how they lie in memory for the kernels.

``int8`` has one float32 scale for each output: W = scale · Q, Q from −127 to 127. ``int4`` has one float16
scale for each group of 32 or 64 weights that one row holds side by side: W = scale · (Q − 8), Q from 0 to 15,
or with a float16 minimum beside the scale, W = scale · Q + minimum. A group's scale is the one of a few that
loses the least squared error. checkpoint/NATIVE.md draws the two layouts, whose padding is always worth 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from adept_fast.choices import PACKED_FORMATS

Layout = Literal["rows", "units"]

TILE = 16  # rows whose weights of the same columns lie together in the "rows" layout
_ROW_MULTIPLE = 64  # to which "rows" pads the columns; it takes any group
_UNIT_MULTIPLE = 128  # to which "units" does
_BLOCK_ELEMENTS = 1 << 18  # are rounded at a time, so that what is computed of them stays in the cache

# A scale that clips a group's extremes a little loses less than one that spans them. On gaussian groups of 32
# these come within 0.1% of the least error that forty find.
_SPANS = (0.8, 0.84, 0.88, 0.92, 0.96, 1.0, 1.04, 1.08)

# What weights can be rounded to, by the names that users write.
WEIGHT_FORMATS = PACKED_FORMATS

_MATRICES = (
    "self_attn.query_key_value.weight",
    "self_attn.dense.weight",
    "mlp.dense_h_to_4h.weight",
    "mlp.dense_4h_to_h.weight",
    "lm_head.weight",
)


class QuantizationError(ValueError):
    """A matrix that cannot be rounded: it holds a NaN or an infinity, or more than its format can say."""


@dataclass(frozen=True)
class Packing:
    """How a matrix is packed.

    Args:
        bits: 8 or 4.
        layout: ``rows`` of an [out, in] matrix, or ``units`` of a [units, out] one, whose rows are read one
            by one where a unit is not 0.
        group_size: 32 or 64 for 4 bits; None for 8, which have one scale for each output.
        has_minimum: whether a group of 4 bits has a minimum beside its scale.
    """

    bits: int
    layout: Layout
    group_size: int | None = None
    has_minimum: bool = False

    def __post_init__(self) -> None:
        groups = {8: (None,), 4: (32, 64)}.get(self.bits, ())
        if self.group_size not in groups or (self.has_minimum and self.bits == 8):
            raise QuantizationError(
                f"the packing is {self.bits} bits in groups of {self.group_size}; expected 8 bits with None, "
                f"or 4 bits with groups of 32 or 64"
            )

    @property
    def dtypes(self) -> tuple[torch.dtype, torch.dtype]:
        """Those of the values and of the scales."""
        return (torch.int8, torch.float32) if self.bits == 8 else (torch.uint8, torch.float16)

    def padded(self, columns: int) -> int:
        """How many columns ``columns`` take with their padding."""
        multiple = _ROW_MULTIPLE if self.layout == "rows" else _UNIT_MULTIPLE
        return -(-columns // multiple) * multiple

    def shapes(self, shape: tuple[int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of the values and of the scales of a matrix of ``shape``."""
        rows, columns = shape[0], self.padded(shape[1])
        group, parts = self.group_size, 1 + self.has_minimum
        if self.layout == "rows":
            tiles = -(-rows // TILE)
            values = (tiles, columns * self.bits // 32, TILE, 4)
            return values, (TILE * tiles,) if group is None else (tiles, columns // group, parts, TILE)
        packed = (rows, columns * self.bits // 8)
        return packed, (columns,) if group is None else (rows, parts, columns // group)

    def nbytes(self, shape: tuple[int, int]) -> int:
        """How many bytes a matrix of ``shape`` takes, its padding included."""
        return sum(
            torch.Size(size).numel() * dtype.itemsize
            for size, dtype in zip(self.shapes(shape), self.dtypes, strict=True)
        )


@dataclass(frozen=True)
class QuantizedMatrix:
    """A packed matrix of ``shape``, [out, in] or in the ``units`` layout [units, out].

    ``values`` and ``scales`` have the shapes and dtypes that ``Packing`` gives, and are contiguous.
    """

    values: Tensor
    scales: Tensor
    shape: tuple[int, int]
    bits: int
    group_size: int | None
    layout: Layout

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def nbytes(self) -> int:
        return int(self.values.nbytes + self.scales.nbytes)

    @property
    def has_minimum(self) -> bool:
        part = 2 if self.layout == "rows" else 1
        return self.bits == 4 and self.scales.shape[part] == 2

    def to(self, device: torch.device) -> QuantizedMatrix:
        return replace(self, values=self.values.to(device), scales=self.scales.to(device))

    def rows(self, count: int) -> QuantizedMatrix:
        """The first ``count`` rows, at most all, as a view; where rows lie in tiles, of whole tiles."""
        count = min(count, self.shape[0])
        if self.layout == "units":
            scales = self.scales if self.bits == 8 else self.scales[:count]
            return replace(self, values=self.values[:count], scales=scales, shape=(count, self.shape[1]))
        tiles = -(-count // TILE)
        scales = self.scales[: TILE * tiles] if self.bits == 8 else self.scales[:tiles]
        return replace(self, values=self.values[:tiles], scales=scales, shape=(count, self.shape[1]))

    def dequantize(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows ``start`` to ``stop`` (None: the last) of the matrix: float32 [stop - start, columns]."""
        stop = self.shape[0] if stop is None else min(stop, self.shape[0])
        if self.layout == "units":
            values = _units_of_bytes(self.values[start:stop], self.bits)  # [stop - start, padded columns]
            scales = self.scales if self.bits == 8 else self.scales[start:stop].transpose(1, 2)[..., None]
            return self._weights(values, scales)
        first, last = start // TILE, -(-stop // TILE)
        values = _rows_of_tiles(self.values[first:last], self.bits)  # [rows of the tiles, padded columns]
        if self.bits == 8:
            scales = self.scales[TILE * first : TILE * last, None]
        else:
            tiled = self.scales[first:last].permute(0, 3, 1, 2)  # [tiles, 16, groups, parts]
            scales = tiled.flatten(0, 1)[..., None]
        return self._weights(values, scales)[start - TILE * first : stop - TILE * first]

    def _weights(self, values: Tensor, scales: Tensor) -> Tensor:
        """Float32 [rows, columns] of values [rows, padded columns].

        The scales are float32 and broadcast over the values, or [rows, groups, parts, 1].
        """
        if self.group_size is None:
            return (values * scales)[:, : self.shape[1]]
        grouped = values.view(
            len(values), values.shape[1] // self.group_size, self.group_size
        ).float()  # [rows, groups, group]
        scales = scales.float()
        if self.has_minimum:
            weights = grouped * scales[:, :, 0] + scales[:, :, 1]
        else:
            weights = (grouped - 8) * scales[:, :, 0]
        return weights.flatten(1)[:, : self.shape[1]]


def packing_of(name: str, weights: str) -> Packing | None:
    """How ``weights``, one of WEIGHT_FORMATS, packs the tensor that transformers calls ``name``.

    None for vectors and the embedding, which stay floats: of the embedding a step reads only the rows it
    looks up, so a narrower one saves no time, and where it is memory-mapped no memory. The output matrix has
    8 bits in ``int4`` too. Measured on the demo checkpoint, as Kullback-Leibler divergence from float32 a
    token, and share of tokens of which the likeliest next one is the same:

    ===================================  ======  =====
    int8                                 0.0002  99.4%
    int8, the embedding too              0.0003  99.5%
    int4                                 0.0177  96.1%
    int4, the embedding in int8          0.0176  96.1%
    int4, lm_head too                    0.0220  95.0%
    int4 in groups of 64 with a minimum  0.0236  92.7%
    ===================================  ======  =====
    """
    if not name.endswith(_MATRICES):
        return None
    layout: Layout = "units" if name.endswith("mlp.dense_4h_to_h.weight") else "rows"
    if weights == "int4" and name != "lm_head.weight":
        return Packing(4, layout, group_size=32)
    return Packing(8, layout)


Matrix: TypeAlias = Tensor | QuantizedMatrix


def first_rows(matrix: Matrix, count: int) -> Matrix:
    """The first ``count`` rows, as a view."""
    return matrix.rows(count) if isinstance(matrix, QuantizedMatrix) else matrix[:count]


def quantize(matrix: Tensor, packing: Packing) -> QuantizedMatrix:
    """Round and pack a matrix, [out, in] or for the ``units`` layout [units, out], on the device where it is.

    It may be of any float dtype and strides; beside the result, memory holds a block of it.

    Raises QuantizationError where it is not a matrix, or holds a NaN, an infinity or too large a number.
    """
    if matrix.ndim != 2 or not matrix.is_floating_point():
        raise QuantizationError(f"has shape {list(matrix.shape)} and dtype {matrix.dtype}; expected a matrix")
    shape = (matrix.shape[0], matrix.shape[1])
    values, scales = (
        torch.empty(size, dtype=dtype, device=matrix.device)
        for size, dtype in zip(packing.shapes(shape), packing.dtypes, strict=True)
    )
    if packing.bits == 8 and packing.layout == "units":
        scales.copy_(_column_scales(matrix, packing))
    step = max(TILE, _BLOCK_ELEMENTS // packing.padded(shape[1]) // TILE * TILE)
    for start in range(0, shape[0], step):
        block = _padded_block(matrix, start, start + step, packing)  # [rows, padded columns]
        rows = slice(start, start + block.shape[0])
        tiles = slice(start // TILE, (start + block.shape[0]) // TILE)
        if packing.bits == 8 and packing.layout == "rows":
            scales[rows] = checked_magnitudes(block.abs().amax(1), torch.finfo(torch.float32).max) / 127
            values[tiles] = _tiles_of_rows(_rounded(block, scales[rows, None]), 8)
        elif packing.bits == 8:
            values[rows] = _bytes_of_units(_rounded(block, scales), 8)
        else:
            rounded, parts = _rounded_groups(block, shape[1], packing)  # [rows, groups, parts]
            if packing.layout == "rows":
                values[tiles] = _tiles_of_rows(rounded, 4)
                scales[tiles] = parts.view(-1, TILE, *parts.shape[1:]).permute(0, 2, 3, 1)
            else:
                values[rows] = _bytes_of_units(rounded, 4)
                scales[rows] = parts.transpose(1, 2)
    return QuantizedMatrix(values, scales, shape, packing.bits, packing.group_size, packing.layout)


def _padded_block(matrix: Tensor, start: int, stop: int, packing: Packing) -> Tensor:
    """Rows of the matrix in float32, with zeros to the padded columns and, in tiles, to whole tiles."""
    block = matrix[start:stop].float().contiguous()
    rows = -block.shape[0] % TILE if packing.layout == "rows" else 0
    columns = packing.padded(matrix.shape[1]) - matrix.shape[1]
    return F.pad(block, (0, columns, 0, rows)) if rows or columns else block


def checked_magnitudes(largest: Tensor, limit: float) -> Tensor:
    """``largest``, magnitudes of weights; QuantizationError where one is past ``limit`` or not finite."""
    most = largest.amax().item()
    if not most < float("inf"):
        raise QuantizationError("has a NaN or an infinity")
    if most > limit:
        raise QuantizationError(f"holds a weight of magnitude {most:.6g}; this format ends at {limit:.6g}")
    return largest


def _column_scales(matrix: Tensor, packing: Packing) -> Tensor:
    """The scales of 8-bit columns, from the largest magnitude of each: float32 [padded columns]."""
    largest = matrix.new_zeros(packing.padded(matrix.shape[1]), dtype=torch.float32)
    step = max(1, _BLOCK_ELEMENTS // matrix.shape[1])
    for block in matrix.split(step):
        magnitudes = block.abs().amax(0).float()  # [columns]
        torch.maximum(largest[: matrix.shape[1]], magnitudes, out=largest[: matrix.shape[1]])
    return checked_magnitudes(largest, torch.finfo(torch.float32).max) / 127


def _rounded(block: Tensor, scales: Tensor) -> Tensor:
    """The nearest Q of each weight: int8, as ``block``."""
    quotients = block / scales.masked_fill(scales == 0, 1)
    return quotients.round_().clamp_(-127, 127).to(torch.int8)


def _rounded_groups(block: Tensor, columns: int, packing: Packing) -> tuple[Tensor, Tensor]:
    """The Q of each weight, uint8 as ``block``, and each group's scale and minimum, float32 values that
    float16 holds: [rows, groups, parts]. What is past ``columns`` gets a Q that is worth 0."""
    group = packing.group_size or 0
    grouped = block.view(len(block), -1, group)  # [rows, groups, group]
    if not packing.has_minimum:
        rounded, scales = rounded_symmetric(grouped)
        return rounded.flatten(1), scales[..., None]
    rounded, scales, minima = _with_minimum(grouped)
    padding = columns // group  # the first group that has some; 8 · scale is exact, so Q = 8 is worth 0 there
    rounded[:, padding:], scales[:, padding:] = rounded_symmetric(grouped[:, padding:])
    minima[:, padding:] = -8 * scales[:, padding:]
    return rounded.flatten(1), torch.stack((scales, minima), dim=-1)


def rounded_symmetric(grouped: Tensor) -> tuple[Tensor, Tensor]:
    """Q in uint8 [rows, groups, group] and scales [rows, groups], for W = scale · (Q − 8).

    A scale has the sign that makes Q = 0, the end of the longer side, stand for the group's extreme.
    """
    if not grouped.numel():
        return grouped.to(torch.uint8), grouped.new_zeros(grouped.shape[:2])
    magnitudes = grouped.abs()
    extremes = grouped.gather(-1, magnitudes.argmax(-1, keepdim=True))  # [rows, groups, 1]
    # Checked as they are, since argmax may pass by a NaN.
    checked_magnitudes(magnitudes, 8 * torch.finfo(torch.float16).max)
    scales = torch.zeros_like(extremes)
    least = torch.full_like(extremes, float("inf"))
    for span in _SPANS:
        rounded = _signed(grouped, _as_float16(extremes * (span / -8)))
        squares = rounded.square().sum(-1, keepdim=True)
        products = (grouped * rounded).sum(-1, keepdim=True)
        # The scale that suits these integers best; its error is this and the weights' own squares.
        scale = _as_float16(products / squares.clamp(min=1))
        error = scale * (scale * squares - 2 * products)
        better = error < least
        scales = torch.where(better, scale, scales)
        least = torch.where(better, error, least)
    return (_signed(grouped, scales) + 8).to(torch.uint8), scales[..., 0]


def _signed(grouped: Tensor, scales: Tensor) -> Tensor:
    """The nearest of −8 to 7 for each weight, 0 where the scale is 0."""
    inverses = scales.reciprocal().masked_fill_(scales == 0, 0)
    return (grouped * inverses).round_().clamp_(-8, 7)


def _with_minimum(grouped: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Q in uint8 [rows, groups, group], scales and minima [rows, groups], for W = scale · Q + minimum."""
    checked_magnitudes(grouped.abs(), torch.finfo(torch.float16).max)
    lowest, highest = grouped.aminmax(dim=-1, keepdim=True)  # each [rows, groups, 1]
    middle, half = (lowest + highest) / 2, (highest - lowest) / 2
    mean = grouped.mean(-1, keepdim=True)
    centred = grouped - mean
    scales, minima = torch.zeros_like(mean), torch.zeros_like(mean)
    least = torch.full_like(mean, float("inf"))
    for span in _SPANS:
        rounded = _unsigned(grouped, half * (2 * span / 15), middle - half * span)
        level = rounded.mean(-1, keepdim=True)
        spread = (rounded - level).square().sum(-1, keepdim=True)
        scale = _as_float16((centred * (rounded - level)).sum(-1, keepdim=True) / spread.clamp(min=1e-3))
        minimum = _as_float16(mean - scale * level)
        error = (rounded * scale + minimum - grouped).square().sum(-1, keepdim=True)
        better = error < least
        scales = torch.where(better, scale, scales)
        minima = torch.where(better, minimum, minima)
        least = torch.where(better, error, least)
    return _unsigned(grouped, scales, minima).to(torch.uint8), scales[..., 0], minima[..., 0]


def _unsigned(grouped: Tensor, scales: Tensor, minima: Tensor) -> Tensor:
    """The nearest of 0 to 15 for each weight, 0 where the scale is 0."""
    inverses = scales.reciprocal().masked_fill_(scales == 0, 0)
    return ((grouped - minima) * inverses).round_().clamp_(0, 15)


def _as_float16(numbers: Tensor) -> Tensor:
    """Rounded to what float16 holds, at most its largest."""
    largest = torch.finfo(torch.float16).max
    return numbers.clamp(-largest, largest).half().float()


def _tiles_of_rows(rounded: Tensor, bits: int) -> Tensor:
    """[rows, columns] of Q → the ``rows`` layout's bytes [tiles, columns · bits / 32, 16, 4]."""
    columns = rounded.shape[1]
    if bits == 8:
        return rounded.view(-1, TILE, columns // 4, 4).transpose(1, 2)
    halves = rounded.view(-1, TILE, columns // 8, 2, 4)
    return (halves[:, :, :, 0] | halves[:, :, :, 1] << 4).transpose(1, 2)


def _rows_of_tiles(tiles: Tensor, bits: int) -> Tensor:
    """The inverse of ``_tiles_of_rows``."""
    rows = tiles.transpose(1, 2)  # [tiles, 16, columns · bits / 32, 4]
    if bits == 4:
        rows = torch.stack((rows & 15, rows >> 4), dim=3)  # [tiles, 16, columns / 8, 2, 4]
    return rows.flatten(2).flatten(0, 1)


def _bytes_of_units(rounded: Tensor, bits: int) -> Tensor:
    """[units, columns] of Q → the ``units`` layout's bytes [units, columns · bits / 8]."""
    units = len(rounded)
    if bits == 4:
        halves = rounded.view(units, -1, 2, 64)  # [units, blocks, 2, 64]
        rounded = halves[:, :, 0] | halves[:, :, 1] << 4
    return rounded.reshape(units, -1, 4, 4, 4).transpose(2, 3).flatten(1)


def _units_of_bytes(packed: Tensor, bits: int) -> Tensor:
    """The inverse of ``_bytes_of_units``."""
    columns = (
        packed.view(len(packed), packed.shape[1] // 64, 4, 4, 4).transpose(2, 3).flatten(2)
    )  # [units, blocks, 64]
    if bits == 4:
        columns = torch.stack((columns & 15, columns >> 4), dim=2)  # [units, blocks, 2, 64]
    return columns.flatten(1)

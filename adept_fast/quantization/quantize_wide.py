"""Matrices in 8 or 4 bits a weight as the kernels of a GPU read them: row by row, in long runs.

``fp8`` is float8 (e4m3) with one float32 scale for each output: W = scale · Q. ``int4`` has one float16 scale
for each group of 128 weights that one row holds side by side: W = scale · (Q − 8), Q from 0 to 15, and the
scale is the one of a few that loses the least squared error. Beside ``quantize``'s groups of 32 that is a
quarter of the scales to read, where reading is all there is to do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from adept_fast.checkpoint import CheckpointError, PackedMatrix, StoredTensor, packed_matrices
from adept_fast.config import PersimmonConfig
from adept_fast.quantization.quantize import (
    Packing,
    QuantizationError,
    QuantizedMatrix,
    checked_magnitudes,
    rounded_symmetric,
)

GROUP = 128  # weights of 4 bits that share a scale, and to which a row of them is padded
LARGEST_FLOAT8 = 448.0
_LARGEST_INT4 = 2.0**15  # so that float16 holds every weight that comes out
_BLOCK_ELEMENTS = 1 << 22  # are rounded at a time

# What weights can be rounded to on a GPU, by the names that users write.
WIDE_FORMATS = ("fp8", "int4")


@dataclass(frozen=True)
class WidePacking(Packing):
    """How a matrix is packed: 8 bits without groups, or 4 bits in groups of 128."""

    def __post_init__(self) -> None:
        if (self.bits, self.group_size) not in ((8, None), (4, GROUP)) or self.has_minimum:
            raise QuantizationError(
                f"the packing is {self.bits} bits in groups of {self.group_size}; expected 8 bits with None, "
                f"or 4 bits with groups of {GROUP}"
            )

    @property
    def dtypes(self) -> tuple[torch.dtype, torch.dtype]:
        return (torch.float8_e4m3fn, torch.float32) if self.bits == 8 else (torch.uint8, torch.float16)

    def padded(self, columns: int) -> int:
        return columns if self.bits == 8 else -(-columns // GROUP) * GROUP

    def shapes(self, shape: tuple[int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        rows, columns = shape
        if self.bits == 8:
            return shape, (rows if self.layout == "rows" else columns,)
        padded = self.padded(columns)
        return (rows, padded // 2), (rows, padded // GROUP)


@dataclass(frozen=True)
class WideMatrix(QuantizedMatrix):
    """A matrix that ``WidePacking`` describes.

    ``floats``: the dtype for products with many tokens, bfloat16 where it was packed from that, else float16.
    """

    floats: torch.dtype = torch.float16

    @property
    def has_minimum(self) -> bool:
        return False

    def rows(self, count: int) -> WideMatrix:
        count = min(count, self.shape[0])
        scales = self.scales if self._scales_are_of_columns else self.scales[:count]
        return replace(self, values=self.values[:count], scales=scales, shape=(count, self.shape[1]))

    def dequantize(self, start: int = 0, stop: int | None = None) -> Tensor:
        weights = self.unscaled(start, stop, torch.float32)
        if self.bits == 4:
            return weights
        return weights * (self.scales if self._scales_are_of_columns else self.scales[start:stop, None])

    def unscaled(self, start: int, stop: int | None, dtype: torch.dtype) -> Tensor:
        """Rows ``start`` to ``stop``, in 8 bits without the scales of the outputs: [stop - start, columns].

        No wider float lies in memory between.
        """
        values = self.values[start:stop]
        if self.bits == 8:
            return values.to(dtype)
        grouped: Tensor = _nibbles_of(values).to(dtype).unflatten(1, (-1, GROUP))  # [rows, groups, group]
        weights = grouped.sub_(8).mul_(self.scales[start:stop, :, None].to(dtype))
        return weights.flatten(1)[:, : self.shape[1]]

    @property
    def _scales_are_of_columns(self) -> bool:
        return self.bits == 8 and self.layout == "units"


@dataclass(frozen=True)
class WidePackedMatrix(PackedMatrix):
    """A matrix of a model that a format of a GPU packs."""

    def pack(self, stored: StoredTensor, device: torch.device | None = None) -> WideMatrix:
        matrix = stored.read().to(device=device)
        try:
            return quantize_wide(matrix.t() if self.is_transposed else matrix, self.packing)
        except QuantizationError as error:
            raise CheckpointError(f"{stored.source}: tensor {stored.name} {error}") from error


def wide_matrices(config: PersimmonConfig, weights: str) -> dict[str, WidePackedMatrix]:
    """By name, the matrices that ``weights``, one of WIDE_FORMATS, packs: those that ``int8`` and ``int4``
    pack on a CPU, each in as many bits."""
    on_a_cpu = packed_matrices(config, {"fp8": "int8"}.get(weights, weights))
    return {
        name: WidePackedMatrix(name, matrix.tensor, matrix.shape, _wide(matrix.packing))
        for name, matrix in on_a_cpu.items()
    }


def _wide(packing: Packing) -> WidePacking:
    return WidePacking(packing.bits, packing.layout, None if packing.bits == 8 else GROUP)


def quantize_wide(matrix: Tensor, packing: Packing) -> WideMatrix:
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
    if packing.bits == 8:
        scales.copy_(_float8_scales(matrix, 1 if packing.layout == "rows" else 0))
    step = max(1, _BLOCK_ELEMENTS // max(1, packing.padded(shape[1])))
    for start in range(0, shape[0], step):
        rows = slice(start, start + step)
        block = matrix[rows].float()  # [rows, columns]
        if packing.bits == 8:
            of_block = scales[rows, None] if packing.layout == "rows" else scales
            values[rows] = _float8(block, of_block)
        else:
            values[rows], scales[rows] = _int4(F.pad(block, (0, packing.padded(shape[1]) - shape[1])))
    floats = torch.bfloat16 if matrix.dtype == torch.bfloat16 else torch.float16
    return WideMatrix(values, scales, shape, packing.bits, packing.group_size, packing.layout, floats)


def _float8_scales(matrix: Tensor, inputs: int) -> Tensor:
    """From the largest magnitude of each output: float32 [outputs].

    They keep 20 bits, and weights have 4: so every product is exact in float32, and packing what was unpacked
    changes nothing.
    """
    lowest, highest = torch.aminmax(matrix, dim=inputs) if matrix.numel() else (matrix.sum(inputs),) * 2
    largest = torch.maximum(highest.float(), -lowest.float())
    if largest.numel():
        checked_magnitudes(largest, torch.finfo(torch.float32).max)
    bits = (largest / LARGEST_FLOAT8).view(torch.int32)
    return ((bits + 8) & ~15).view(torch.float32)


def _float8(block: Tensor, scales: Tensor) -> Tensor:
    quotients = block / scales.masked_fill(scales == 0, 1)
    # Past its end float8 has no infinity, but NaN.
    return quotients.clamp_(-LARGEST_FLOAT8, LARGEST_FLOAT8).to(torch.float8_e4m3fn)


def _int4(block: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes [rows, columns / 2] and float32 scales [rows, groups], for columns that are whole groups."""
    if block.numel():
        checked_magnitudes(block.abs(), _LARGEST_INT4)
    rounded, scales = rounded_symmetric(block.unflatten(1, (-1, GROUP)))
    return _bytes_of(rounded.flatten(1)), scales


def _bytes_of(rounded: Tensor) -> Tensor:
    """[rows, columns] of Q → [rows, columns / 2]: of each 8, weights 2 i and 2 i + 1 stand in the low and the
    high half of a 32-bit word, both at bit 4 i."""
    eights = rounded.view(len(rounded), rounded.shape[1] // 8, 2, 2, 2)  # [rows, words, byte, nibble, half]
    return (eights[:, :, :, 0] | eights[:, :, :, 1] << 4).transpose(2, 3).flatten(1)


def _nibbles_of(packed: Tensor) -> Tensor:
    """The inverse of ``_bytes_of``."""
    pairs = torch.stack((packed & 15, packed >> 4), -1)  # [rows, columns / 2, nibble]
    words = pairs.view(len(packed), packed.shape[1] // 4, 2, 2, 2)  # [rows, words, half, byte, nibble]
    return words.permute(0, 1, 3, 4, 2).flatten(1)

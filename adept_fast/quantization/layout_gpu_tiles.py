"""gpu_tiles: the layout of matrices, packed or of floats, for the CUDA kernels that read whole tiles."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from adept_fast.quantization import tile_order
from adept_fast.quantization.formats import MatrixSpec
from adept_fast.quantization.layout_gpu import GpuMatrix
from adept_fast.quantization.matrix import LayoutMatrix, QuantizedMatrix, Stored
from adept_fast.quantization.rounding import Agree, RoundedRows, of_whole_matrix, row_blocks


@dataclass(frozen=True)
class GpuTiles(QuantizedMatrix):
    """A packed matrix in tiles, or strips if transposed. In 4 bits ``scales`` are a view of ``values``."""

    layout: ClassVar[str] = "gpu_tiles"

    @classmethod
    def stored(cls, spec: MatrixSpec) -> tuple[Stored, ...]:
        values = tile_order.stored_shape(spec), spec.format.values_dtype
        if spec.format.group_size is not None:
            return (values,)
        return values, (spec.shape[spec.transposed : spec.transposed + 1], spec.format.scales_dtype)

    @classmethod
    def of(cls, spec: MatrixSpec, *tensors: Tensor) -> GpuTiles:
        values, *apart = tensors
        return cls(values, apart[0] if apart else tile_order.group_scales(values, spec), spec)

    @property
    def parts(self) -> tuple[Tensor, Tensor | None]:
        return self.values, None if self.bits == 4 else self.scales

    def put(self, start: int, rows: RoundedRows) -> None:
        spec, stop = self.spec, start + len(rows.values)
        if self.bits == 4:
            joined = GpuMatrix.join_nibbles(rows.values)
            tile_order.put_rows(self.values, spec, start, joined, rows.scales)
            return
        tile_order.put_rows(self.values, spec, start, rows.values)
        if spec.transposed:
            self.scales.copy_(rows.scales[0])
        else:
            self.scales[start:stop] = rows.scales[:, 0]

    def rounded(self, start: int, stop: int) -> RoundedRows:
        spec, values = self.spec, tile_order.get_rows(self.values, self.spec, start, stop)
        if self.bits == 4:
            split = GpuMatrix.split_nibbles(values[:, : spec.padded_columns // 2])
            scales = tile_order.get_scales(self.values, spec, start, stop)
            return RoundedRows(spec.format, split, scales[:, : spec.scales_shape[1]])
        scales = self.scales[None] if spec.transposed else self.scales[start:stop, None]
        return RoundedRows(spec.format, values[:, : spec.shape[1]], scales)

    @classmethod
    def slices(cls, spec: MatrixSpec, rows: range, columns: range) -> None:
        """A part of rows is put together: no file has this layout, so there is no other need of one."""

    def rows(self, count: int) -> GpuTiles:
        """Of strips, a view that is not contiguous."""
        count = min(count, self.shape[0])
        spec = replace(self.spec, shape=(count, self.shape[1]))
        values, *apart = self.tensors
        scales = [one if spec.transposed else one[:count] for one in apart]
        return self.of(spec, tile_order.with_rows(values, spec, 0, count), *scales)


@dataclass(frozen=True)
class GpuFloatTiles(LayoutMatrix):
    """A matrix in tiles, or strips if transposed, whose spec has a ``float_format``."""

    values: Tensor
    spec: MatrixSpec

    layout: ClassVar[str] = "gpu_tiles"

    @classmethod
    def stored(cls, spec: MatrixSpec) -> tuple[Stored, ...]:
        return ((tile_order.stored_shape(spec), spec.format.values_dtype),)

    @classmethod
    def of(cls, spec: MatrixSpec, *tensors: Tensor) -> GpuFloatTiles:
        (values,) = tensors
        return cls(values, spec.rounded_from(spec.format.values_dtype))

    @classmethod
    def pack(
        cls, matrix: Tensor, spec: MatrixSpec, device: torch.device, agree: Agree = of_whole_matrix
    ) -> GpuFloatTiles:
        """A matrix of any float dtype, that ``device`` holds one block of beside the result."""
        packed = cls.empty(spec, device)
        if spec.transposed:
            packed._put_strips(matrix)
            return packed
        for start, stop in row_blocks(spec, device):
            block = matrix[start:stop].to(device, spec.format.values_dtype)
            tile_order.put_rows(packed.values, spec, start, block)
        return packed

    def _put_strips(self, matrix: Tensor) -> None:
        """Strip by strip: the columns of a transposed matrix are rows of a file."""
        width = tile_order.columns_of_a_part(self.spec)
        for at, strip in enumerate(self.values):
            columns = matrix[:, width * at : width * (at + 1)].to(self.device, self.values.dtype)
            strip[:, : columns.shape[1]] = columns
            strip[:, columns.shape[1] :] = 0

    @property
    def parts(self) -> tuple[Tensor, None]:
        return self.values, None

    def rows(self, count: int) -> GpuFloatTiles:
        """Of strips, a view that is not contiguous."""
        spec = replace(self.spec, shape=(min(count, self.shape[0]), self.shape[1]))
        return self.of(spec, tile_order.with_rows(self.values, spec, 0, spec.shape[0]))

    def dequantize(self, start: int = 0, stop: int | None = None) -> Tensor:
        return self.unscaled(start, stop, torch.float32)

    def unscaled(self, start: int, stop: int | None, dtype: torch.dtype) -> Tensor:
        stop = self.shape[0] if stop is None else min(stop, self.shape[0])
        return tile_order.get_rows(self.values, self.spec, start, stop)[:, : self.shape[1]].to(dtype)


def is_in_tiles(matrix: object) -> bool:
    """Whether a matrix, packed or of floats, is in tiles or strips."""
    return isinstance(matrix, (GpuTiles, GpuFloatTiles))

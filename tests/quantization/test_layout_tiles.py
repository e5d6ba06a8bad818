"""Matrices in tiles: every byte lies where csrc/cuda/tile_layout.h says, and no weight changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from matrices import packed_nibbles
from torch import Tensor

from adept_fast.quantization import rounding
from adept_fast.quantization.formats import FORMATS, MatrixSpec, WeightFormat, float_format
from adept_fast.quantization.layout_cpu import TiledMatrix
from adept_fast.quantization.layout_gpu import GpuMatrix
from adept_fast.quantization.layout_gpu_tiles import GpuFloatTiles, GpuTiles, is_in_tiles
from adept_fast.quantization.layout_plain import RowMajorMatrix
from adept_fast.quantization.matrix import LayoutMatrix, QuantizedMatrix, first_rows, parts_of, repack

CPU = torch.device("cpu")
HALVES = (torch.float16, torch.bfloat16)
SHAPES = [(1, 8), (16, 64), (17, 65), (31, 128), (33, 264), (48, 520), (5, 1032), (270, 24), (18, 2056)]


@dataclass(frozen=True)
class Case:
    weights: WeightFormat
    transposed: bool

    @property
    def layout(self) -> type[LayoutMatrix]:
        return GpuTiles if self.weights.bits < 16 else GpuFloatTiles

    def spec(self, rows: int, columns: int) -> MatrixSpec:
        return MatrixSpec(self.weights, (rows, columns), self.transposed)

    def pack(self, matrix: Tensor, layout: type[LayoutMatrix] | None = None) -> LayoutMatrix:
        return (layout or self.layout).pack(matrix, self.spec(*matrix.shape), CPU)

    def __str__(self) -> str:
        return f"{self.weights.name}{'-transposed' * self.transposed}"


CASES = [
    Case(weights, transposed)
    for weights in (*FORMATS.values(), *map(float_format, HALVES))
    for transposed in (False, True)
]
PACKED = [case for case in CASES if case.layout is GpuTiles]

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_packing = pytest.mark.parametrize("case", PACKED, ids=str)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def gaussian(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows + columns))


def bytes_of(tensor: Tensor) -> np.ndarray:
    return tensor.contiguous().view(torch.uint8).numpy()


def by_the_header(case: Case, floats: Tensor) -> np.ndarray:
    """The bytes of tiles or strips, piece by piece, from rows in plain order."""
    group, scales = case.weights.group_size, None
    if case.layout is GpuFloatTiles:
        rows = bytes_of(floats.to(case.weights.values_dtype))
    else:
        plain = case.pack(floats, RowMajorMatrix)
        assert isinstance(plain, RowMajorMatrix)
        rounded = plain.rounded(0, plain.shape[0])
        rows = bytes_of(packed_nibbles(rounded.values.long()) if group else rounded.values)
        scales = rounded.scales.numpy() if group else None
    if case.transposed:
        return in_strips(rows, scales, group or 0)
    return in_tiles(rows, scales, group or 0)


def in_tiles(rows: np.ndarray, scales: np.ndarray | None, group: int) -> np.ndarray:
    tiles, chunks = -(-len(rows) // 16), -(-rows.shape[1] // 256)
    scales_of_a_step = 0 if scales is None else 128 // group
    padded = np.zeros((16 * tiles, 256 * chunks), np.uint8)
    padded[: len(rows), : rows.shape[1]] = rows
    stored = np.zeros((tiles, chunks, 4096 + 2 * 16 * 4 * scales_of_a_step), np.uint8)
    for tile, chunk, step, half, g, t in np.ndindex(tiles, chunks, 4, 2, 8, 4):
        row, column = 16 * tile + 8 * half + g, 256 * chunk + 64 * step + 16 * t
        at = ((2 * step + half) * 32 + 4 * g + t) * 16
        stored[tile, chunk, at : at + 16] = padded[row, column : column + 16]
        index = (4 * chunk + step) * scales_of_a_step + t
        if scales is None or t >= scales_of_a_step or row >= len(rows) or index >= scales.shape[1]:
            continue
        at = (step * 8 + g) * 2 + half if group == 128 else ((step * 8 + g) * 4 + t) * 2 + half
        stored[tile, chunk, 4096 + 2 * at : 4098 + 2 * at] = scales[row, index : index + 1].view(np.uint8)
    return stored


def in_strips(rows: np.ndarray, scales: np.ndarray | None, group: int) -> np.ndarray:
    strips = -(-rows.shape[1] // 512)
    groups = 0 if scales is None else 1024 // group
    stored = np.zeros((strips, len(rows), 512 + 2 * groups), np.uint8)
    for strip, row in np.ndindex(strips, len(rows)):
        part = rows[row, 512 * strip : 512 * (strip + 1)]
        stored[strip, row, : len(part)] = part
        if scales is not None:
            own = scales[row, groups * strip : groups * (strip + 1)].view(np.uint8)
            stored[strip, row, 512 : 512 + len(own)] = own
    return stored


@every_case
@every_shape
def test_everything_lies_where_the_header_says(
    case: Case, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The padding too, which is zeros, whatever the memory held before."""
    empty = torch.empty

    def used(*size: Any, **settings: Any) -> Tensor:
        tensor = empty(*size, **settings)
        tensor.view(torch.uint8).fill_(0xA5)
        return tensor

    monkeypatch.setattr(torch, "empty", used)
    floats = gaussian(*shape)
    matrix = case.pack(floats)
    values, scales = parts_of(matrix)
    assert np.array_equal(bytes_of(values), by_the_header(case, floats))
    assert values.dtype == case.weights.values_dtype
    assert values.dim() == 3
    assert (scales is None) == (case.weights.bits != 8)
    if scales is not None:
        plain = case.pack(floats, RowMajorMatrix)
        assert isinstance(plain, RowMajorMatrix)
        assert torch.equal(scales, plain.scales)
    for tensor, (size, dtype) in zip(matrix.tensors, case.layout.stored(matrix.spec), strict=True):
        assert (tuple(tensor.shape), tensor.dtype, tensor.is_contiguous()) == (size, dtype, True)
    assert matrix.nbytes == case.layout.bytes_of(case.spec(*shape)) == sum(t.nbytes for t in matrix.tensors)
    assert (matrix.shape, matrix.device, matrix.bits) == (shape, CPU, case.weights.bits)
    assert is_in_tiles(matrix)


@every_packing
@every_shape
def test_packed_weights_are_those_of_rows(case: Case, shape: tuple[int, int]) -> None:
    floats = gaussian(*shape).bfloat16()
    by_row, matrix = case.pack(floats, GpuMatrix), case.pack(floats)
    assert isinstance(by_row, GpuMatrix) and isinstance(matrix, GpuTiles)  # noqa: PT018
    assert torch.equal(matrix.dequantize(), by_row.dequantize())
    for dtype in HALVES:
        assert torch.equal(matrix.unscaled(3, None, dtype), by_row.unscaled(3, None, dtype))
    assert matrix.spec == by_row.spec


@every_packing
@every_shape
def test_repacking_gives_the_bits_of_packing_floats(case: Case, shape: tuple[int, int]) -> None:
    floats = gaussian(*shape).bfloat16()
    packed = case.pack(floats)
    assert isinstance(packed, GpuTiles)
    for layout in (RowMajorMatrix, GpuMatrix, TiledMatrix):
        if not layout.holds(case.weights):
            continue
        other = case.pack(floats, layout)
        assert isinstance(other, QuantizedMatrix)
        assert same_bits(repack(other, GpuTiles, CPU), packed)
        assert same_bits(repack(packed, layout, CPU), other)
    assert repack(packed, GpuTiles, CPU).values.data_ptr() == packed.values.data_ptr()


def same_bits(one: LayoutMatrix, other: LayoutMatrix) -> bool:
    pairs = zip(one.tensors, other.tensors, strict=True)
    return one.spec == other.spec and all(np.array_equal(*map(bytes_of, pair)) for pair in pairs)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", HALVES)
@every_shape
def test_floats_are_what_they_were(shape: tuple[int, int], dtype: torch.dtype, transposed: bool) -> None:
    floats = gaussian(*shape)
    matrix = Case(float_format(dtype), transposed).pack(floats)
    assert torch.equal(matrix.unscaled(0, None, dtype), floats.to(dtype))
    assert torch.equal(matrix.dequantize(), floats.to(dtype).float())
    assert matrix.spec.product_dtype == dtype


@every_case
def test_rows(case: Case) -> None:
    """Some rows are whole tiles of the same memory."""
    matrix = case.pack(gaussian(51, 1040))
    whole = matrix.dequantize()
    for start, stop in ((0, 1), (0, 16), (15, 17), (16, 32), (33, 51), (50, 51), (20, 20), (16, 16)):
        assert torch.equal(matrix.dequantize(start, stop), whole[start:stop])
    assert torch.equal(matrix.dequantize(40, 1000), whole[40:])
    for count in (1, 16, 17, 50, 51, 1000):
        first = first_rows(matrix, count)
        assert isinstance(first, case.layout)
        assert first.shape == (min(count, 51), 1040)
        assert torch.equal(first.dequantize(), whole[:count])
        assert first.values.data_ptr() == matrix.values.data_ptr()
        for tensor, (size, _) in zip(first.tensors, case.layout.stored(first.spec), strict=True):
            assert tuple(tensor.shape) == size
            assert tensor.is_contiguous() or case.transposed


@every_case
def test_any_dtype_strides_and_blocks(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    floats = gaussian(70, 1100).half()
    expected = case.pack(floats)
    monkeypatch.setattr(rounding, "_BLOCK_ELEMENTS", {"cpu": 1})
    for same in (floats, floats.float(), floats.t().contiguous().t()):
        assert same_bits(case.pack(same), expected)
    assert same_bits(expected.to(CPU), expected)
    assert same_bits(expected.map(torch.clone), expected)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_nan_in_tiles_is_found(transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "_BLOCK_ELEMENTS", {"cpu": 1})
    matrix = Case(FORMATS["fp8"], transposed).pack(gaussian(40, 600))
    assert isinstance(matrix, GpuTiles)
    assert not matrix.has_nan_values()
    matrix.values.view(torch.uint8)[-1, -1, 0] = 0x7F
    assert matrix.has_nan_values()


@every_case
def test_a_block_at_a_time_is_held_beside_the_result(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "_BLOCK_ELEMENTS", {"cpu": 1 << 14})
    floats = gaussian(512, 768).half()
    floats = floats.t().contiguous().t() if case.transposed else floats  # as a file has it
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiled:
        packed = case.pack(floats)
    held = sorted(event.self_cpu_memory_usage for event in profiled.events())
    assert held[-1] == packed.values.nbytes
    assert held[-2] <= packed.nbytes / 2

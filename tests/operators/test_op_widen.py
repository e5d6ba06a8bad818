"""widen: rows of a packed matrix in 16 bits, with the bits of plain PyTorch, from every order in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backends import CUDA, THIN, Backend, on, same_bits
from torch import Tensor

from adept_fast.quantization.formats import FORMATS, MatrixSpec
from adept_fast.quantization.layout_gpu import GpuMatrix
from adept_fast.quantization.matrix import quantize

FLOATS = {"float16": torch.float16, "bfloat16": torch.bfloat16}
ORDERS = ("rows", "tiles", "strips")
# Parts of a tile, a chunk, a strip, a group and a warp's columns, and more than one of each.
SHAPES = [(1, 8), (16, 64), (35, 72), (40, 520), (19, 1024), (50, 1160), (3, 4104)]
if THIN:
    SHAPES = [(1, 8), (35, 72), (19, 1160)]

every_format = pytest.mark.parametrize("fmt", [*FORMATS, *FLOATS])
every_order = pytest.mark.parametrize("order", ORDERS)


def drawn(fmt: str, rows: int, columns: int) -> GpuMatrix | Tensor:
    """Every byte that there is, and scales of both signs."""
    values = torch.randn(rows, columns)
    if fmt in FLOATS:
        return values.to(FLOATS[fmt])
    matrix = quantize(values, MatrixSpec(FORMATS[fmt], (rows, columns)), GpuMatrix)
    bytes_ = torch.randint(256, matrix.values.shape, dtype=torch.uint8)
    if fmt == "fp8":
        bytes_[bytes_ & 127 == 127] = 0  # the two NaNs, which no packed matrix has
    matrix.values.copy_(bytes_.view(matrix.values.dtype))
    if matrix.bits == 4:
        matrix.scales.copy_(
            torch.randn(matrix.scales.shape) * 10 ** torch.randint(-6, 3, matrix.scales.shape)
        )
    return matrix


def expected(matrix: GpuMatrix | Tensor, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    return matrix[start:stop] if isinstance(matrix, Tensor) else matrix.unscaled(start, stop, dtype)


def stored(matrix: GpuMatrix | Tensor, order: str) -> dict[str, Tensor | None]:
    """Values and scales in memory, by the definition in csrc/cuda/tile_layout.h."""
    values = matrix if isinstance(matrix, Tensor) else matrix.values
    is_int4 = isinstance(matrix, GpuMatrix) and matrix.bits == 4
    scales = matrix.scales if isinstance(matrix, GpuMatrix) and is_int4 else None
    if order == "rows":
        return {"w": values, "scales": scales}
    into = in_tiles if order == "tiles" else in_strips
    return {"w": into(values.view(torch.uint8), scales).view(values.dtype), "scales": None}


def in_tiles(rows: Tensor, scales: Tensor | None) -> Tensor:
    """uint8 [tiles, chunks, bytes of a chunk]."""
    padded = padded_to(rows, 16, 256).view(-1, 2, 8, -(-rows.shape[1] // 256), 4, 4, 16)
    pieces = padded.permute(0, 3, 4, 1, 2, 5, 6)  # [tile, chunk, step, half, g, t, byte]
    chunks = pieces.reshape(*pieces.shape[:2], -1)
    if scales is None:
        return chunks.contiguous()
    of_row = 256 * chunks.shape[1] * scales.shape[1] // rows.shape[1] // chunks.shape[1]  # scales, of a chunk
    grouped = padded_to(scales, 16, of_row).view(-1, 2, 8, chunks.shape[1], 4, of_row // 4)
    grouped = grouped.permute(0, 3, 4, 2, 5, 1)  # [tile, chunk, step, g, t, half]
    own = grouped.reshape(*chunks.shape[:2], -1).view(torch.uint8)
    return torch.cat((chunks, own), -1).contiguous()


def in_strips(rows: Tensor, scales: Tensor | None) -> Tensor:
    """uint8 [strips, rows, bytes of a row]."""
    strips = padded_to(rows, 1, 512).view(len(rows), -1, 512).transpose(0, 1)
    if scales is None:
        return strips.contiguous()
    of_row = 512 * scales.shape[1] // rows.shape[1]
    own = padded_to(scales, 1, of_row).view(len(rows), -1, of_row).transpose(0, 1).contiguous()
    return torch.cat((strips, own.view(torch.uint8)), -1).contiguous()


def padded_to(matrix: Tensor, rows: int, columns: int) -> Tensor:
    return F.pad(matrix, (0, -matrix.shape[1] % columns, 0, -matrix.shape[0] % rows))


def widen(backend: Backend, matrix: Any, order: str, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    at = {"cols": matrix.shape[1], "start": start, "stop": stop, "dtype": dtype}
    found: Tensor = backend.run("widen", **stored(matrix, order), **at)
    assert found.is_contiguous()
    return found


def cases(fmt: str, order: str) -> list[torch.dtype]:
    """What it may be widened to."""
    if fmt in FLOATS:
        return [] if order == "rows" else [FLOATS[fmt]]
    return list(FLOATS.values())


@every_order
@every_format
@on(CUDA)
def test_it_is_what_torch_widens(backend: Backend, fmt: str, order: str) -> None:
    for rows, columns in SHAPES:
        matrix = drawn(fmt, rows, columns)
        for dtype in cases(fmt, order):
            for start, stop in {(0, rows), (rows // 3, rows), (rows // 2, rows // 2 + 1), (0, 0)}:
                found = widen(backend, matrix, order, start, stop, dtype)
                wanted = expected(matrix, start, stop, dtype)
                assert same_bits(found, wanted), f"{rows} x {columns}, rows {start} to {stop}, {dtype}"


@every_order
@pytest.mark.parametrize("fmt", ["fp8", "int4-g32", "int4-g128"])
@on(CUDA)
def test_the_same_bits_in_any_order(backend: Backend, fmt: str, order: str) -> None:
    matrix = drawn(fmt, 35, 1160)
    for schedule in backend.schedules():
        with schedule:
            found = widen(backend, matrix, order, 5, 35, torch.float16)
        assert same_bits(found, expected(matrix, 5, 35, torch.float16))


ROWS = {"w": torch.zeros(35, 64, dtype=torch.int8), "scales": None, "cols": 64}
TILES = {"w": torch.zeros(3, 2, 4224, dtype=torch.uint8), "scales": None, "cols": 640}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (ROWS | {"cols": 60}, "w has 60 columns; expected a multiple of 8"),
        (ROWS | {"cols": 56}, r"w has shape \[35, 64\]; expected \[35, 56\]"),
        (
            ROWS | {"w": torch.zeros(64, dtype=torch.int8)},
            r"w has shape \[64\]; expected \[rows, columns\], or tiles",
        ),
        (ROWS | {"w": torch.zeros(35, 64).half()}, "w has dtype Half; expected Byte, Char or Float8_e4m3fn"),
        (ROWS | {"w": torch.zeros(35, 32).byte()}, "w has dtype Byte and no scales"),
        (ROWS | {"stop": 36}, "start and stop are 0 and 36; expected rows of the 35 of w"),
        (ROWS | {"start": 5, "stop": 4}, "start and stop are 5 and 4"),
        (ROWS | {"start": -1}, "start and stop are -1 and 5"),
        (ROWS | {"dtype": torch.float32}, "dtype is Float; expected Half or BFloat16"),
        (TILES | {"cols": 504}, r"w has shape \[3, 2, 4224\]; expected \[3, 1, 4224\]"),
        (TILES | {"cols": 1032}, r"w has shape \[3, 2, 4224\]; expected \[3, 3, 4224\]"),
        (TILES | {"w": torch.zeros(3, 2, 4200, dtype=torch.uint8)}, "expected tiles or strips"),
        (TILES | {"stop": 49}, "start and stop are 0 and 49; expected rows of the 48"),
        (
            {"w": torch.zeros(3, 2, 2048).half(), "scales": None, "cols": 256, "dtype": torch.bfloat16},
            "dtype is BFloat16; expected that of w",
        ),
    ],
)
@on(CUDA)
def test_what_is_no_matrix_is_refused(backend: Backend, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(RuntimeError, match=says):
        backend.run("widen", **{"start": 0, "stop": 5, "dtype": torch.float16, **arguments})

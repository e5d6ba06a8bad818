"""Row tiles: products by torch's GEMM whose bits do not depend on the number of rows.

cuBLAS chooses the order of a product's sums by its shape. For one shape, a row has the same bits wherever it
is and whatever the other rows are. So rows are padded to tiles of fixed sizes: those of a prompt to the
largest tile of their matrix, or to a smaller one that a trial on this device has shown to give the same bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import TypeAlias

import torch
from torch import Tensor

from adept_fast.quantization.matrix import Matrix

Product: TypeAlias = Callable[[Tensor, Matrix], Tensor]  # [rows, inputs], matrix → [..., rows, outputs]

_TILES = (64, 128, 256, 512)
_MAX_RESULTS = 1 << 23  # outputs of a tile, which bounds the memory for its padding
_ALIGNMENT = 16  # bytes; cuBLAS takes other kernels for matrices that are aligned to less

_equal_tiles: dict[Hashable, tuple[int, ...]] = {}


@functools.cache
def largest_tile(outputs: int) -> int:
    """The rows of the tile that defines the bits of a product with so many outputs."""
    return max((tile for tile in _TILES if tile * outputs <= _MAX_RESULTS), default=_TILES[0])


def tiles_of(
    product: Product, tokens: int, w: Matrix, outputs: int, inputs: tuple[int, torch.dtype], few: int = 0
) -> list[int]:
    """The tiles for so many rows, of which the last may be filled in part: no bit of a row depends on others.

    Args:
        product: a function of a module, with one order of sums for each shape.
        inputs: their number and dtype.
        few: up to this number of rows are one tile of this size, whose bits may differ from the others'.
    """
    if tokens <= few:
        return [few] if tokens else []
    largest = largest_tile(outputs)
    whole, rest = divmod(tokens, largest)
    if not rest:
        return [largest] * whole
    smaller = _smaller_tiles(product, w, largest, inputs)
    return [largest] * whole + [next(tile for tile in (*smaller, largest) if tile >= rest)]


def in_tiles(product: Product, x: Tensor, w: Matrix, tiles: list[int]) -> Tensor:
    """``product(x, w)`` tile by tile, [..., rows, outputs], of as many rows as the tiles have."""
    if len(tiles) < 2:
        return product(x, w)
    return torch.cat([product(rows, w) for rows in x.split(tiles)], -2)


def forget() -> None:
    """Forget the trials, for tests."""
    _equal_tiles.clear()


def _smaller_tiles(
    product: Product, w: Matrix, largest: int, inputs: tuple[int, torch.dtype]
) -> tuple[int, ...]:
    """The tiles below ``largest`` that give its bits, in ascending order, by one trial for each shape."""
    if largest == _TILES[0]:
        return ()
    key = (product, w.device, inputs, largest, _kind(w))
    if key not in _equal_tiles:
        if _is_captured(w.device):  # the trial waits for the device
            return ()
        _equal_tiles[key] = _try_tiles(product, w, largest, inputs)
    return _equal_tiles[key]


def _is_captured(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _kind(w: Matrix) -> Hashable:
    if isinstance(w, Tensor):
        return w.dtype, w.shape, w.stride(), w.data_ptr() % _ALIGNMENT
    return type(w), w.spec


@torch.no_grad()
def _try_tiles(product: Product, w: Matrix, largest: int, inputs: tuple[int, torch.dtype]) -> tuple[int, ...]:
    columns, dtype = inputs
    generator = torch.Generator(w.device).manual_seed(0)
    x = torch.randn(largest, columns, generator=generator, dtype=dtype, device=w.device)
    expected = product(x, w)

    def has_its_bits(tile: int) -> bool:
        parts = zip(x.split(tile), expected.split(tile, -2), strict=True)
        return all(torch.equal(product(rows, w), one) for rows, one in parts)

    return tuple(tile for tile in _TILES if tile < largest and has_its_bits(tile))

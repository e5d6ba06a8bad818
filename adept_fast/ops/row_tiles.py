"""Row tiles: products by torch's GEMM whose bits do not depend on the number of rows.

cuBLAS chooses the order of a product's sums by its shape. For one shape, a row has the same bits wherever it
is and whatever the other rows are. So rows are padded to tiles of fixed sizes: those of a prompt to the
largest tile of their matrix, or to a smaller one that a trial on this device has shown to give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeAlias

import torch
from torch import Tensor

from adept_fast.quantization.matrix import Matrix

Product: TypeAlias = Callable[[Tensor, Matrix], Tensor]  # [rows, inputs], matrix → float32 [rows, outputs]

_TILES = (64, 128, 256, 512)
_MAX_RESULTS = 1 << 23  # outputs of a tile, which bounds the memory for its padding
_ALIGNMENT = 16  # bytes; cuBLAS takes other kernels for matrices that are aligned to less

_equal_tiles: dict[Hashable, tuple[int, ...]] = {}


def largest_tile(outputs: int) -> int:
    """The rows of the tile that defines the bits of a product with so many outputs."""
    return max((tile for tile in _TILES if tile * outputs <= _MAX_RESULTS), default=_TILES[0])


def in_tiles(product: Product, x: Tensor, w: Matrix, outputs: int, few: int = 0) -> Tensor:
    """``product(x, w)`` in tiles of rows, float32 [rows, outputs]: each row's bits depend on it and w alone.

    Args:
        product: a function of a module, with one order of sums for each shape.
        few: up to this number of rows are one tile of this size, whose bits may differ from the others'.
    """
    if not len(x):
        return x.new_empty(0, outputs, dtype=torch.float32)
    if len(x) <= few:
        return _in_tile(product, x, w, few)
    largest = largest_tile(outputs)
    tiles = (*(_smaller_tiles(product, x, w, largest) if len(x) % largest else ()), largest)
    parts = [
        _in_tile(product, rows, w, next(tile for tile in tiles if tile >= len(rows)))
        for rows in x.split(largest)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def forget() -> None:
    """Forget the trials, for tests."""
    _equal_tiles.clear()


def _in_tile(product: Product, x: Tensor, w: Matrix, tile: int) -> Tensor:
    if len(x) == tile:
        return product(x, w)
    padded = x.new_empty(tile, x.shape[1])
    padded[: len(x)] = x
    padded[len(x) :] = 0
    return product(padded, w)[: len(x)]


def _smaller_tiles(product: Product, x: Tensor, w: Matrix, largest: int) -> tuple[int, ...]:
    """The tiles below ``largest`` that give its bits, in ascending order, by one trial for each shape."""
    if largest == _TILES[0]:
        return ()
    key = (product, x.device, x.dtype, largest, _kind(w))
    if key not in _equal_tiles:
        if _is_captured(x):  # the trial waits for the device
            return ()
        _equal_tiles[key] = _try_tiles(product, x, w, largest)
    return _equal_tiles[key]


def _is_captured(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def _kind(w: Matrix) -> Hashable:
    if isinstance(w, Tensor):
        return w.dtype, w.shape, w.stride(), w.data_ptr() % _ALIGNMENT
    return type(w), w.spec


@torch.no_grad()
def _try_tiles(product: Product, x: Tensor, w: Matrix, largest: int) -> tuple[int, ...]:
    generator = torch.Generator(x.device).manual_seed(0)
    inputs = torch.randn(largest, x.shape[1], generator=generator, dtype=x.dtype, device=x.device)
    expected = product(inputs, w)

    def has_its_bits(tile: int) -> bool:
        parts = zip(inputs.split(tile), expected.split(tile), strict=True)
        return all(torch.equal(product(rows, w), one) for rows, one in parts)

    return tuple(tile for tile in _TILES if tile < largest and has_its_bits(tile))

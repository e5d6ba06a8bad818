"""The order of bytes in matrices in tiles, the same for all formats: ``csrc/cuda/tile_layout.h`` defines it.

A matrix for y = W x is stored as [tiles, chunks, bytes of a chunk], a transposed one for y = Wᵀ x as [strips,
rows, bytes of a row]. In 4 bits, float16 scales follow the values of a chunk, or of a row of a strip. All
padding is zeros.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adept_fast.quantization.formats import MatrixSpec

TILE_ROWS = 16
_STEPS = 4  # of a chunk
_STEP_ROW_BYTES = 64  # of each of the 16 rows of a tile
_CHUNK_ROW_BYTES = _STEPS * _STEP_ROW_BYTES
_CHUNK_BYTES = TILE_ROWS * _CHUNK_ROW_BYTES
_STRIP_ROW_BYTES = 512


def columns_of_a_part(spec: MatrixSpec) -> int:
    """The columns of a chunk or, if transposed, of a strip; rows are padded to a multiple of them."""
    return (_STRIP_ROW_BYTES if spec.transposed else _CHUNK_ROW_BYTES) * 8 // spec.format.bits


def stored_shape(spec: MatrixSpec) -> tuple[int, int, int]:
    """The shape of the stored tensor, in elements of the format's dtype."""
    rows, parts = spec.shape[0], -(-spec.shape[1] // columns_of_a_part(spec))
    size = (_value_bytes(spec) + _scale_bytes(spec)) // spec.format.values_dtype.itemsize
    return (parts, rows, size) if spec.transposed else (-(-rows // TILE_ROWS), parts, size)


def with_rows(stored: Tensor, spec: MatrixSpec, start: int, stop: int) -> Tensor:
    """The part that has rows ``start`` to ``stop``, as a view: whole tiles, or their part of all strips."""
    return stored[:, start:stop] if spec.transposed else stored[start // TILE_ROWS : -(-stop // TILE_ROWS)]


def group_scales(stored: Tensor, spec: MatrixSpec) -> Tensor:
    """The float16 scales of 4 bits, as they lie, as a view: of shape […, …, scales of a chunk or row]."""
    return stored[..., _value_bytes(spec) :].view(torch.float16)


def put_rows(
    stored: Tensor, spec: MatrixSpec, start: int, rows: Tensor, scales: Tensor | None = None
) -> None:
    """Store rows from ``start`` on, a multiple of 16, and the padding beside and behind them.

    Args:
        rows: [count, elements], two weights of 4 bits in each.
        scales: of 4 bits: float16 [count, groups].
    """
    part = with_rows(stored, spec, start, start + len(rows))
    _fill(_values_by_row(part, spec), rows.contiguous().view(torch.uint8), spec)
    if scales is not None:
        _fill(_scales_by_row(part, spec), scales, spec)


def get_rows(stored: Tensor, spec: MatrixSpec, start: int, stop: int) -> Tensor:
    """Rows ``start`` to ``stop`` in plain order, padded columns included, in the stored dtype."""
    part = with_rows(stored, spec, start, stop)
    return _read(_values_by_row(part, spec), spec, start, stop).view(stored.dtype)


def get_scales(stored: Tensor, spec: MatrixSpec, start: int, stop: int) -> Tensor:
    """The scales of rows ``start`` to ``stop`` of 4 bits: float16 [stop - start, padded groups]."""
    return _read(_scales_by_row(with_rows(stored, spec, start, stop), spec), spec, start, stop)


def _value_bytes(spec: MatrixSpec) -> int:
    """In a chunk, or in a row of a strip."""
    return _STRIP_ROW_BYTES if spec.transposed else _CHUNK_BYTES


def _scale_bytes(spec: MatrixSpec) -> int:
    """In a chunk, or in a row of a strip."""
    if spec.format.group_size is None:
        return 0
    groups = columns_of_a_part(spec) // spec.format.group_size
    return torch.float16.itemsize * groups * (1 if spec.transposed else TILE_ROWS)


def _values_by_row(part: Tensor, spec: MatrixSpec) -> Tensor:
    """A view of the bytes whose dimensions are those of rows, then those of a row's bytes."""
    values = part.view(torch.uint8)[..., : _value_bytes(spec)]
    if spec.transposed:
        return values.transpose(0, 1)  # [rows, strips, byte]
    # Rows 8 h + g of step s follow one another: [tile, chunk, step, row, byte].
    steps: Tensor = values.unflatten(2, (_STEPS, TILE_ROWS, _STEP_ROW_BYTES))
    return steps.permute(0, 3, 1, 2, 4)


def _scales_by_row(part: Tensor, spec: MatrixSpec) -> Tensor:
    """As ``_values_by_row``, of scales."""
    scales = group_scales(part, spec)
    if spec.transposed:
        return scales.transpose(0, 1)  # [rows, strips, group]
    # Row 8 h + g: [tile, chunk, step, g, group of the step, h].
    steps: Tensor = scales.unflatten(2, (_STEPS, TILE_ROWS // 2, -1, 2))
    return steps.permute(0, 5, 3, 1, 2, 4)


def _fill(by_row: Tensor, rows: Tensor, spec: MatrixSpec) -> None:
    count, columns = _size(by_row, spec)
    padded = F.pad(rows, (0, columns - rows.shape[1], 0, count - len(rows)))
    by_row.copy_(padded.view(by_row.shape))


def _read(by_row: Tensor, spec: MatrixSpec, start: int, stop: int) -> Tensor:
    first = start if spec.transposed else start // TILE_ROWS * TILE_ROWS
    return by_row.reshape(_size(by_row, spec))[start - first : stop - first]


def _size(by_row: Tensor, spec: MatrixSpec) -> tuple[int, int]:
    """The rows and columns of a view whose dimensions are those of rows, then those of columns."""
    together = 1 if spec.transposed else TILE_ROWS
    return together * by_row.shape[0], by_row.shape[1:].numel() // together

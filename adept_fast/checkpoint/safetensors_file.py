"""A safetensors file: its header is checked by the safetensors library, its tensors are read by range."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from adept_fast.checkpoint.base import CheckpointError, StoredTensor, tensor_of
from adept_fast.checkpoint.file_range import FileRange
from adept_fast.checkpoint.tensor_part import read_part
from adept_fast.system.json_file import parse_json
from adept_fast.system.regular_file import FileError
from adept_fast.system.short_text import short_repr, shortened

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 32 * 2**20  # 65 000 tensors need 9 MB
_METADATA = "__metadata__"
_MAX_NAME_LENGTH = 256
_MAX_DIMENSIONS = 64  # of a tensor of torch

# safetensors' names for dtypes; those that no weight may have are refused later, by name.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class SafetensorsFile:
    """The tensors of a file by name, still on disk, and the metadata of its header."""

    tensors: dict[str, StoredTensor]
    metadata: Mapping[str, str]


def open_safetensors(path: Path, *, mmap: bool = True) -> SafetensorsFile:
    """Open a safetensors file and check its header; CheckpointError if it is not a valid one.

    ``mmap``: whether a tensor that is read stays in the file, memory-mapped, or is copied from it.
    """
    file = FileRange.whole(path, mmap=mmap)
    start = _LENGTH_BYTES + _header_bytes(file)
    _require_valid(file)
    try:
        header = parse_json(file.read_at(_LENGTH_BYTES, start - _LENGTH_BYTES), f"{path}: its header")
    except FileError as error:
        raise CheckpointError(str(error)) from error
    metadata = header.pop(_METADATA, {})
    tensors = {name: _stored_tensor(file, start, name, entry) for name, entry in header.items()}
    return SafetensorsFile(tensors, metadata if isinstance(metadata, dict) else {})


def _header_bytes(file: FileRange) -> int:
    """The length of the header, which the file begins with; CheckpointError if no header follows."""
    length = int.from_bytes(file.read_at(0, min(_LENGTH_BYTES, file.size)), "little")
    if not 2 <= length <= file.size - _LENGTH_BYTES or file.read_at(_LENGTH_BYTES, 1) != b"{":
        raise _invalid(file, "its first 8 bytes are not the length of a header behind them")
    if length > _MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{file.label}: its header has {length} bytes; expected at most {_MAX_HEADER_BYTES}"
        )
    return length


def _require_valid(file: FileRange) -> None:
    """Raises CheckpointError if the library refuses the header: its syntax, an offset, an overlap, …"""
    opened_path = file.file.system_path
    try:
        with safe_open(opened_path, framework="np"):  # which maps it to be read alone
            pass
    except (SafetensorError, OSError) as error:
        # It may quote the header.
        raise _invalid(file, shortened(str(error).replace(opened_path, file.label))) from error


def _invalid(file: FileRange, reason: str) -> CheckpointError:
    return file.not_valid(f"not a valid safetensors file ({reason})")


def _stored_tensor(file: FileRange, start: int, name: str, entry: Mapping[str, Any]) -> StoredTensor:
    """One entry of the header. The library's checks are repeated: the file may have changed."""
    if len(name) > _MAX_NAME_LENGTH or not name.isprintable():
        raise CheckpointError(
            f"{file.label}: holds a tensor named {shortened(name)}, of {len(name)} characters; "
            f"expected printable text of at most {_MAX_NAME_LENGTH}"
        )
    try:
        shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
        if not isinstance(entry["dtype"], str) or not all(type(size) is int for size in (*shape, begin, end)):
            raise TypeError
        if len(shape) > _MAX_DIMENSIONS:
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file.label}: not a valid safetensors file (its header says {short_repr(entry)} of {name})"
        ) from error
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
        raise CheckpointError(
            f"{file.label}: holds a tensor of the unknown dtype {short_repr(entry['dtype'])}"
        )
    size = math.prod(shape) * dtype.itemsize
    if min((*shape, begin)) < 0 or end - begin != size or start + end > file.size:
        raise CheckpointError(
            f"{file.label}: not a valid safetensors file (tensor {name} does not have its {size} bytes)"
        )
    view = partial(_view, file, name, start + begin)
    return StoredTensor(
        name,
        shape,
        dtype,
        file.label,
        lambda: tensor_of(view(0, size), dtype).view(shape),
        None if file.mmap else partial(read_part, view, dtype, shape),
    )


def _view(file: FileRange, name: str, start: int, offset: int, length: int) -> memoryview:
    """Bytes of the tensor that lies in the file from ``start`` on."""
    try:
        return file.view(start + offset, length)
    except CheckpointError as error:
        raise CheckpointError(f"{error}, in tensor {name}") from error

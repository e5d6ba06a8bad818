"""Files of weights, written tensor by tensor: never more than one is held in memory."""

from __future__ import annotations

import io
import json
import math
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adept_fast.checkpoint.base import CheckpointError, StoredTensor, dtype_name

_SAFETENSORS_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.float8_e4m3fn: "F8_E4M3",
}
_STORAGE_TYPES = {
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
}
_ARCHIVE = "model_optim_rng"
_ALIGNMENT = 64  # as torch.save aligns tensors, so that they can be memory-mapped
_ZIP64_EXTRA = 20  # bytes that zipfile itself adds to the header of an entry that may be over 2 GiB
_LOCAL_HEADER = 30

Progress = Callable[[int], object]


def size_of(tensor: StoredTensor, dtype: torch.dtype | None) -> int:
    """The size of a tensor in bytes after conversion to ``dtype`` (None: as it is)."""
    return math.prod(tensor.shape) * (dtype or tensor.dtype).itemsize


def write_safetensors(
    path: Path, tensors: Sequence[StoredTensor], dtype: torch.dtype | None, progress: Progress
) -> None:
    """Write one safetensors file; ``progress`` is called with the bytes of each tensor written."""
    require_little_endian(path)
    # Wider elements first, so that every tensor is aligned to its own.
    ordered = sorted(tensors, key=lambda tensor: -(dtype or tensor.dtype).itemsize)
    entries = [(tensor.name, dtype or tensor.dtype, tensor.shape) for tensor in ordered]
    header, _ = safetensors_header(entries, {"format": "pt"})
    with path.open("xb") as file:
        file.write(header)
        for tensor in ordered:
            file.write(bytes_of(read_as(tensor, dtype)))
            progress(size_of(tensor, dtype))


def safetensors_header(
    entries: Iterable[tuple[str, torch.dtype, tuple[int, ...]]], metadata: dict[str, str]
) -> tuple[bytes, dict[str, int]]:
    """The first bytes of a safetensors file of these tensors, and the offset of each tensor in the file.

    The first offset is a multiple of 64, and there are no gaps between the tensors.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    offsets: dict[str, int] = {}
    position = 0
    for name, dtype, shape in entries:
        end = position + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _SAFETENSORS_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [position, end],
        }
        offsets[name] = position
        position = end
    encoded = json.dumps(header, separators=(",", ":")).encode("utf-8")
    encoded += b" " * (-(8 + len(encoded)) % _ALIGNMENT)
    start = 8 + len(encoded)
    return len(encoded).to_bytes(8, "little") + encoded, {name: start + at for name, at in offsets.items()}


def write_torch_file(
    path: Path,
    contents: dict[str, Any],
    tensors: Mapping[str, StoredTensor],
    dtype: torch.dtype | None,
    progress: Progress,
) -> None:
    """Write ``contents`` as ``torch.save`` does, with the named tensor for each TensorReference."""
    require_little_endian(path)
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, tensors, dtype)
    pickler.dump(contents)
    with path.open("xb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{_ARCHIVE}/data.pkl", buffer.getvalue())
        archive.writestr(f"{_ARCHIVE}/byteorder", sys.byteorder)
        for key, name in enumerate(pickler.names):
            entry = zipfile.ZipInfo(f"{_ARCHIVE}/data/{key}")
            header = file.tell() + _LOCAL_HEADER + len(entry.filename) + _ZIP64_EXTRA
            entry.extra = _padding(-header % _ALIGNMENT)
            with archive.open(entry, "w", force_zip64=True) as stored:
                stored.write(bytes_of(read_as(tensors[name], dtype)))
            progress(size_of(tensors[name], dtype))
        archive.writestr(f"{_ARCHIVE}/version", "3\n")


class TensorReference:
    """Stands for a tensor, by name, in the contents for ``write_torch_file``."""

    def __init__(self, name: str) -> None:
        self.name = name


def read_as(tensor: StoredTensor, dtype: torch.dtype | None) -> Tensor:
    """The tensor, contiguous, in ``dtype`` (None: as it is); CheckpointError if it would overflow."""
    values = tensor.read().contiguous()
    if dtype is None or values.dtype == dtype:
        return values
    converted = values.to(dtype)
    # The extremes need no copy of the tensor, and one of them is not finite if any number is not.
    if all(math.isfinite(extreme.item()) for extreme in torch.aminmax(converted)):
        return converted
    overflown = torch.isinf(converted) & ~torch.isinf(values)
    if overflown.any():
        largest = values[overflown].abs().max().item()
        raise CheckpointError(
            f"{tensor.source}: tensor {tensor.name} holds {largest:.6g}; "
            f"{dtype_name(dtype)} ends at {torch.finfo(dtype).max:.6g}"
        )
    return converted


class _Storage:
    """A tensor's storage in the pickle: torch writes it as a reference to another record of the zip."""

    def __init__(self, key: int, dtype: torch.dtype, elements: int) -> None:
        self.reference = ("storage", _STORAGE_TYPES[dtype], str(key), "cpu", elements)


class _Pickler(pickle.Pickler):
    def __init__(
        self, file: io.BytesIO, tensors: Mapping[str, StoredTensor], dtype: torch.dtype | None
    ) -> None:
        super().__init__(file, protocol=2)  # the one that torch.load reads without running code
        self._tensors = tensors
        self._dtype = dtype
        self.names: list[str] = []

    def persistent_id(self, value: Any) -> Any:
        return value.reference if isinstance(value, _Storage) else None

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, TensorReference):
            return NotImplemented
        tensor = self._tensors[value.name]
        storage = _Storage(len(self.names), self._dtype or tensor.dtype, math.prod(tensor.shape))
        self.names.append(value.name)
        strides = tuple(math.prod(tensor.shape[at + 1 :]) for at in range(len(tensor.shape)))
        hooks: OrderedDict[str, Any] = OrderedDict()
        return torch._utils._rebuild_tensor_v2, (storage, 0, tensor.shape, strides, False, hooks)


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _padding(length: int) -> bytes:
    """An extra field of a zip entry that is ignored, ``length`` bytes long or one alignment longer."""
    if not length:
        return b""
    length += _ALIGNMENT if length < 4 else 0  # the field's own name and length are 4 bytes
    return b"FB" + (length - 4).to_bytes(2, "little") + b"Z" * (length - 4)


def require_little_endian(path: Path) -> None:
    """Raises CheckpointError on a big-endian machine; the formats are little-endian."""
    if sys.byteorder != "little":
        raise CheckpointError(f"{path}: can only be written on a little-endian machine")

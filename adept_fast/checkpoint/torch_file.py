"""A file of torch.save: opening it reads its structure and runs nothing in it; weights are read on access."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adept_fast.checkpoint.base import CheckpointError, StoredTensor, dtype_name, tensor_of
from adept_fast.checkpoint.file_range import FileRange
from adept_fast.checkpoint.pickle_reader import Functions, PickleError, read_pickle
from adept_fast.checkpoint.pickle_values import (
    Global,
    PickledObject,
    PickledStorage,
    PickledTensor,
    described,
)
from adept_fast.checkpoint.tensor_part import read_part
from adept_fast.checkpoint.torch_zip import Record, read_record, read_zip_records, view_record
from adept_fast.system.short_text import short_repr

_MAX_PICKLE_BYTES = 16 * 2**20  # the structure of the 8B is some hundred kilobytes
_MAX_NOTE_BYTES = 1024  # of the records with the byte order and the version
MAX_NAME = 1000  # characters of a tensor's name
_MAX_TENSORS = 2**14  # a model of 36 layers has some 600
_STORAGES: dict[str, torch.dtype | None] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": None,
    "TypedStorage": None,
}
_MAX_DIMENSIONS = 8  # torch allows more, no model has them, and each call of a pickle looks at all
_MAX_SIZE = 2**63 - 1
_PLAIN_CLASSES = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.Parameter")
# The first bytes of files of torch.save before version 1.6: the pickle of a magic number.
_BEFORE_ZIPS = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


@dataclass(frozen=True)
class TorchFile:
    """The argument of ``torch.save``: plain values, and values of ``pickle_values`` for all others.

    ``left_unread`` are the unknown names in it, bounded.
    """

    file: FileRange
    contents: object
    left_unread: tuple[str, ...]
    records: Mapping[str, Record]
    folder: str

    def tensors(self, values: Iterable[tuple[str, object]]) -> dict[str, StoredTensor]:
        """Each value as a tensor of its name.

        Raises CheckpointError as ``tensor`` does, if two have one name, or if there are too many.
        """
        found: dict[str, StoredTensor] = {}
        for name, value in values:
            if name in found:
                raise CheckpointError(f"{self.file.label}: two tensors have the name {name}")
            if len(found) == _MAX_TENSORS:
                raise CheckpointError(f"{self.file.label}: has more than {_MAX_TENSORS} tensors")
            found[name] = self.tensor(name, value)
        return found

    def tensor(self, name: str, value: object) -> StoredTensor:
        """A value in the contents as a tensor; errors call it ``name``.

        Raises CheckpointError if the value is no plain tensor, or its storage does not hold it.
        """
        label = self.file.label
        if not isinstance(value, PickledTensor):
            raise CheckpointError(f"{label}: {name} is {described(value)}; expected a tensor")
        if value.flaw is not None:
            raise CheckpointError(f"{label}: tensor {name} {value.flaw}; expected a plain one")
        storage = value.storage
        size = storage.elements * (storage.dtype.itemsize if storage.dtype else 1)
        record = self.records.get(f"{self.folder}/data/{storage.key}")
        if record is None or record.size != size:
            raise CheckpointError(
                f"{label}: tensor {name} claims a storage of {size} bytes, but the zip has no such record"
            )
        elements, rest = divmod(record.size, value.dtype.itemsize)
        if 0 in value.shape or rest or value.offset + value.span > elements:
            raise CheckpointError(
                f"{label}: tensor {name} of shape {list(value.shape)} in {dtype_name(value.dtype)} "
                f"does not fit its storage of {record.size} bytes"
            )
        read = partial(_read, self.file, name, record, value)
        # A mapping reads no more than what is used of it.
        is_copied = not self.file.mmap and value.is_contiguous
        part = partial(_read_part, self.file, name, record, value) if is_copied else None
        return StoredTensor(name, value.shape, value.dtype, label, read, part)


def read_torch_file(file: FileRange) -> TorchFile:
    """Read the structure of a file of ``torch.save``; no weight is read, and nothing in the file runs.

    Raises CheckpointError for a file that is no zip of ``torch.save``, is damaged, or is from a machine of
    another byte order.
    """
    if file.size >= len(_BEFORE_ZIPS) and file.read_at(0, len(_BEFORE_ZIPS)) == _BEFORE_ZIPS:
        raise CheckpointError(
            f"{file.label}: not a zip, but in the format of torch.save before version 1.6; expected it "
            f"converted, by torch.save(torch.load(file, weights_only=True), new_file)"
        )
    records = read_zip_records(file)
    folder = next(iter(records), "").partition("/")[0]
    pickles = [name for name in records if name.endswith("/data.pkl")]
    if pickles != [f"{folder}/data.pkl"]:
        raise CheckpointError(
            f"{file.label}: the zip has {len(pickles)} records data.pkl; expected one, in its only folder"
        )
    if f"{folder}/constants.pkl" in records:
        raise CheckpointError(f"{file.label}: is a torchscript archive; expected a file of torch.save")
    _check_notes(file, records, folder)
    stream = read_record(file, records[pickles[0]], _MAX_PICKLE_BYTES)
    try:
        pickled = read_pickle(stream, _FUNCTIONS, _CONSTANTS, _storage_of)
    except PickleError as error:
        raise CheckpointError(f"{file.label}: its pickle cannot be read ({error})") from error
    return TorchFile(file, pickled.contents, pickled.left_unread, records, folder)


def tensors_of_bin(path: Path, left_unread: set[str], *, mmap: bool = True) -> dict[str, StoredTensor]:
    """The tensors of a file of torch.save, by name; the unknown names in it are added to ``left_unread``.

    Raises CheckpointError if it is no such file, or holds anything but tensors by name.
    """
    file = FileRange.whole(path, mmap=mmap)
    read = read_torch_file(file)
    if not isinstance(read.contents, dict):
        raise CheckpointError(f"{path}: holds {described(read.contents)}; expected a dict of tensors")
    for name in read.contents:
        if not isinstance(name, str) or not name.isprintable() or len(name) > MAX_NAME:
            raise CheckpointError(f"{path}: has the key {described(name)}; expected the name of a tensor")
    left_unread |= set(read.left_unread)
    return read.tensors(read.contents.items())


def _check_notes(file: FileRange, records: Mapping[str, Record], folder: str) -> None:
    """Raises CheckpointError if a small record is damaged, or the weights are big-endian."""
    order = b"little"  # torch before 2.1 wrote no such record, and reads its absence as little-endian
    for record in records.values():
        if record.name.startswith(f"{folder}/data/") or record.size > _MAX_NOTE_BYTES:
            continue
        contents = read_record(file, record, _MAX_NOTE_BYTES)
        if record.name == f"{folder}/byteorder":
            order = contents
    if order != b"little" or sys.byteorder != "little":
        raise CheckpointError(
            f"{file.label}: its weights are {short_repr(order.decode('ascii', 'replace'))}-endian and this "
            f"machine {sys.byteorder}-endian; expected little for both"
        )


def _read(file: FileRange, name: str, record: Record, view: PickledTensor) -> Tensor:
    """The view of a record's bytes that the pickle describes; no others are mapped or copied."""
    width = view.dtype.itemsize
    contents = view_record(file, record, view.offset * width, view.span * width, f"tensor {name}")
    return tensor_of(contents, view.dtype).as_strided(view.shape, view.stride)


def _read_part(
    file: FileRange, name: str, record: Record, view: PickledTensor, dimension: int, start: int, stop: int
) -> Tensor:
    """Slices of a contiguous tensor; no others are copied, but the checksum is that of the whole record."""

    def contents(offset: int, length: int) -> memoryview:
        return view_record(file, record, view.offset * view.dtype.itemsize + offset, length, f"tensor {name}")

    return read_part(contents, view.dtype, view.shape, dimension, start, stop)


class _StorageType:
    """A class of storages; its elements have ``dtype``, None if they are plain bytes."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        self.dtype = dtype

    def __repr__(self) -> str:
        return f"the class of storages of {self.dtype or 'bytes'}"


def _constants() -> dict[str, object]:
    found: dict[str, object] = {
        f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)
    }
    for name, dtype in _STORAGES.items():
        found |= dict.fromkeys(
            (f"torch.{name}", f"torch.cuda.{name}", f"torch.storage.{name}"), _StorageType(dtype)
        )
    return found


def _storage_of(identity: object) -> PickledStorage | None:
    """The storage that a persistent id of torch.save refers to, None for any other id."""
    if not isinstance(identity, tuple) or len(identity) != 5:
        return None
    kind, storage_type, key, _location, elements = identity
    if kind != "storage" or not isinstance(storage_type, _StorageType) or not isinstance(key, str):
        return None
    if not _is_size(elements):
        return None
    return PickledStorage(storage_type.dtype, key, elements)


def _tensor(arguments: tuple[Any, ...]) -> PickledTensor | None:
    """``_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, metadata)``, and before."""
    if len(arguments) < 4 or not isinstance(arguments[0], PickledStorage):
        return None
    return _view(arguments[0].dtype, arguments, metadata_index=6)


def _tensor_of_bytes(arguments: tuple[Any, ...]) -> PickledTensor | None:
    """``_rebuild_tensor_v3``: the same of an untyped storage, with a dtype after the hooks."""
    if len(arguments) < 7 or not isinstance(arguments[0], PickledStorage):
        return None
    return _view(arguments[6], arguments, metadata_index=7)


def _view(dtype: object, arguments: tuple[Any, ...], metadata_index: int) -> PickledTensor | None:
    storage, offset, shape, stride = arguments[:4]
    if not isinstance(dtype, torch.dtype):
        return None
    if not isinstance(shape, tuple) or not isinstance(stride, tuple) or len(shape) != len(stride):
        return None
    if len(shape) > _MAX_DIMENSIONS or not all(map(_is_size, (offset, *shape, *stride))):
        return None
    # torch writes none but for a lazy view of a tensor's conjugate or negative.
    metadata = arguments[metadata_index : metadata_index + 1]
    flaw = "has metadata, as a lazy view does" if any(metadata) else None
    return PickledTensor(storage, dtype, offset, shape, stride, flaw)


def _parameter(arguments: tuple[Any, ...]) -> PickledTensor | None:
    """``_rebuild_parameter(data, requires_grad, hooks)``, with or without a state: the data."""
    return arguments[0] if arguments and isinstance(arguments[0], PickledTensor) else None


def _tensor_with_attributes(arguments: tuple[Any, ...]) -> object:
    """``_rebuild_from_type_v2(function, class, arguments, state)``, of a tensor that was given attributes."""
    if len(arguments) < 3 or not all(isinstance(each, Global) for each in arguments[:2]):
        return None
    maker, kind, given = arguments[:3]
    known = _FUNCTIONS.get(f"{maker.module}.{maker.name}")
    if known is None or known is _tensor_with_attributes or not isinstance(given, tuple):
        return None
    return known(given) if f"{kind.module}.{kind.name}" in _PLAIN_CLASSES else PickledObject(kind)


def _size(arguments: tuple[Any, ...]) -> object:
    """``torch.Size``: the tuple that it is."""
    return arguments[0] if arguments and isinstance(arguments[0], tuple) else None


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_SIZE


_CONSTANTS: Mapping[str, object] = _constants()
_FUNCTIONS: Functions = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_bytes,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _tensor_with_attributes,
    "torch.Size": _size,
    **dict.fromkeys(_PLAIN_CLASSES, lambda _: None),  # arguments of another function; a call builds nothing
}

"""One rank's ``model_optim_rng.pt``: its structure without its weights, which stay memory-mapped."""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from reprlib import repr as short_repr
from typing import Any

import torch
from torch import Tensor

from adept_fast.checkpoint.base import CheckpointError, StoredTensor, dtype_name
from adept_fast.checkpoint.file_range import FileRange
from adept_fast.stand_in import LOOKED_AT, why_unreadable

_LARGEST_PICKLE = 64 * 2**20  # the structure of the 8B is some hundred kilobytes
_ENCRYPTED = 0x1
_LOCAL_HEADER = struct.Struct("<4s22xHH")

# What zipfile, torch's zip reader and the restricted unpickler raise on damaged or hostile bytes.
_PARSE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
)


# What training leaves in the pickles beside the model: an enum of its own code in ``args``, and numpy's
# random state. They are left unread: no such package is imported, and nothing of it runs.
_LEFT_UNREAD = (
    "megatron.model.enums.ModelType",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray._reconstruct",
    "numpy.dtype",
    "numpy.ndarray",
)


class _Unread:
    """Stands where an object is left unread; takes what the pickle would give that one, and keeps nothing."""

    def __init__(self, *_arguments: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


@dataclass(frozen=True)
class RankFile:
    """The training arguments of a rank, and its tensors under Adept's names, still on disk."""

    file: FileRange
    args: argparse.Namespace
    tensors: dict[str, StoredTensor]


@dataclass(frozen=True)
class _Record:
    """Where an entry of the zip has its bytes, counted from the beginning of the file."""

    name: str
    start: int
    size: int
    crc: int


def read_rank(file: FileRange) -> RankFile:
    """Read the structure of one rank's file; no weight is read, and nothing in the file runs.

    Raises CheckpointError for a file that is no zip of torch.save, names a global beyond torch's own,
    ``argparse.Namespace`` and what is left unread, or has a tensor that its storage does not hold.
    """
    records = _zip_records(file)
    _check_small_records(file, records)
    contents = _load_structure(file)
    if not isinstance(contents, dict):
        raise CheckpointError(f"{file.label}: holds a {type(contents).__name__}; expected a dict")
    args = contents.get("args")
    if not isinstance(args, argparse.Namespace):
        raise CheckpointError(
            f"{file.label}: 'args' is {_kind(contents, 'args')}; expected an argparse.Namespace"
        )
    model = contents.get("model")
    if not isinstance(model, dict):
        raise CheckpointError(f"{file.label}: 'model' is {_kind(contents, 'model')}; expected a dict")
    by_start = {record.start: record for record in records}
    tensors: dict[str, StoredTensor] = {}
    for name, value in _flatten(file, model):
        if name in tensors:
            raise CheckpointError(f"{file.label}: two tensors have the name {name}")
        tensors[name] = _stored_tensor(file, name, value, by_start)
    return RankFile(file, args, tensors)


def _zip_records(file: FileRange) -> list[_Record]:
    with file.open() as opened:
        try:
            if not zipfile.is_zipfile(opened):
                raise CheckpointError(
                    why_unreadable(
                        file.label,
                        file.read_at(0, min(file.size, LOOKED_AT)),
                        "not a zip; expected a file of torch.save from version 1.6 on, whole",
                    )
                )
            with zipfile.ZipFile(opened) as archive:
                return list(_checked_records(file, archive))
        except CheckpointError:
            raise
        except _PARSE_ERRORS as error:
            raise CheckpointError(f"{file.label}: not a zip that can be read ({error})") from error


def _checked_records(file: FileRange, archive: zipfile.ZipFile) -> Iterator[_Record]:
    seen = set()
    for entry in archive.infolist():
        if entry.filename in seen:
            raise CheckpointError(f"{file.label}: two zip records have the name {entry.filename!r}")
        seen.add(entry.filename)
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & _ENCRYPTED:
            raise CheckpointError(
                f"{file.label}: the zip record {entry.filename!r} is compressed or encrypted; "
                f"expected it stored"
            )
        if entry.filename.endswith("/data.pkl") and entry.file_size > _LARGEST_PICKLE:
            raise CheckpointError(
                f"{file.label}: the zip record {entry.filename!r} has {entry.file_size} bytes; "
                f"expected at most {_LARGEST_PICKLE}"
            )
        start = _data_start(archive, entry)
        # zipfile keeps where the central directory begins, which is where the last record must have ended.
        if entry.file_size != entry.compress_size or start + entry.file_size > archive.start_dir:
            raise CheckpointError(
                f"{file.label}: the zip record {entry.filename!r} claims {entry.file_size} bytes, "
                f"which the file does not have there"
            )
        yield _Record(entry.filename, start, entry.file_size, entry.CRC)


def _data_start(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> int:
    """Where a record's bytes begin: only its local header says how long that header is."""
    assert archive.fp is not None
    archive.fp.seek(entry.header_offset)
    name_length: int
    extra_length: int
    signature, name_length, extra_length = _LOCAL_HEADER.unpack(archive.fp.read(_LOCAL_HEADER.size))
    if signature != zipfile.stringFileHeader:  # type: ignore[attr-defined]  # missing from typeshed
        raise zipfile.BadZipFile(f"no local header for {entry.filename!r}")
    return entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length


def _check_small_records(file: FileRange, records: list[_Record]) -> None:
    """Raises CheckpointError where anything but a weight is damaged, or the weights are big-endian."""
    order = b"little"  # torch before 2.1 wrote no record of it, and takes its absence for this too
    for record in records:
        if "/data/" in record.name or not record.size:
            continue
        contents = file.view(record.start, record.size)
        # torch's own reader does not look at checksums, and one digit of the args can make another model.
        if zlib.crc32(contents) != record.crc:
            raise CheckpointError(
                f"{file.label}: the zip record {record.name!r} is damaged (its CRC-32 differs)"
            )
        if record.name.endswith("/byteorder"):
            order = bytes(contents[:8])
    if order != b"little" or sys.byteorder != "little":
        raise CheckpointError(
            f"{file.label}: its weights are {short_repr(order.decode('ascii', 'replace'))}-endian and this "
            f"machine {sys.byteorder}-endian; expected little for both"
        )


def _load_structure(file: FileRange) -> Any:
    admitted: list[Any] = [argparse.Namespace, *((_Unread, name) for name in _LEFT_UNREAD)]
    with file.open() as opened, torch.serialization.safe_globals(admitted):
        try:
            refused = torch.serialization.get_unsafe_globals_in_checkpoint(opened)
            if not refused:
                opened.seek(0)
                # On the meta device torch makes tensors without data and notes where each storage lies.
                return torch.load(opened, map_location="meta", weights_only=True)
        except pickle.UnpicklingError as error:
            # torch puts advice to trust the file around what happened; the context is what happened.
            happened = str(error.__context__ or error).partition("\n")[0]
            refused = re.findall(r"GLOBAL ([\w.]+)", happened)
            if not refused:
                raise CheckpointError(f"{file.label}: cannot be unpickled safely ({happened})") from error
        except _PARSE_ERRORS as error:
            happened = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise CheckpointError(f"{file.label}: cannot be unpickled ({happened})") from error
    raise CheckpointError(
        f"{file.label}: the pickle asks for {', '.join(sorted(refused))}; expected tensors and "
        f"argparse.Namespace alone (nothing of it has run)"
    )


def _kind(contents: dict[Any, Any], key: str) -> str:
    return f"a {type(contents[key]).__name__}" if key in contents else "missing"


def _flatten(file: FileRange, model: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts, each under its path joined by dots."""
    seen = {id(model)}
    waiting: list[tuple[str, dict[Any, Any]]] = [("", model)]
    while waiting:
        prefix, folder = waiting.pop()
        for key, value in folder.items():
            if not isinstance(key, str) or not key.isprintable():
                raise CheckpointError(
                    f"{file.label}: 'model' has the key {short_repr(key)} under {short_repr(prefix)}; "
                    f"expected printable text"
                )
            if not isinstance(value, dict):
                yield prefix + key, value
                continue
            # A dict that comes twice may hold itself, or double at every level.
            if id(value) in seen:
                raise CheckpointError(
                    f"{file.label}: 'model' holds one dict twice, the second time as {prefix + key}"
                )
            seen.add(id(value))
            waiting.append((f"{prefix}{key}.", value))


def _stored_tensor(file: FileRange, name: str, value: Any, by_start: dict[int, _Record]) -> StoredTensor:
    if not isinstance(value, Tensor):
        raise CheckpointError(f"{file.label}: {name} is a {type(value).__name__}; expected a tensor")
    if value.layout != torch.strided or value.is_neg() or value.is_conj():
        raise CheckpointError(f"{file.label}: tensor {name} is sparse or a lazy view; expected a plain one")
    storage = value.untyped_storage()
    record = by_start.get(getattr(storage, "_checkpoint_offset", -1))
    if record is None or record.size != storage.nbytes():
        raise CheckpointError(
            f"{file.label}: tensor {name} claims a storage of {storage.nbytes()} bytes, "
            f"but the zip has no such record"
        )
    last = value.storage_offset() + sum(
        (size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True)
    )
    elements, rest = divmod(record.size, value.dtype.itemsize)
    if not value.numel() or rest or last >= elements:
        raise CheckpointError(
            f"{file.label}: tensor {name} of shape {list(value.shape)} in {dtype_name(value.dtype)} "
            f"does not fit its storage of {record.size} bytes"
        )
    read = partial(_read, file, name, record, value)
    return StoredTensor(name, tuple(value.shape), value.dtype, file.label, read)


def _read(file: FileRange, name: str, record: _Record, like: Tensor) -> Tensor:
    """The bytes of a record as a tensor laid out ``like`` the one on the meta device."""
    contents = file.view(record.start, record.size)
    found = zlib.crc32(contents)
    if found != record.crc:
        raise CheckpointError(
            f"{file.label}: tensor {name} is damaged (its bytes have the CRC-32 {found:08x}, "
            f"the file calls for {record.crc:08x})"
        )
    flat = torch.frombuffer(contents, dtype=torch.uint8)
    if flat.data_ptr() % like.dtype.itemsize:  # other zip writers than torch's do not align
        flat = flat.clone()
    return flat.view(like.dtype).as_strided(like.shape, like.stride(), like.storage_offset())

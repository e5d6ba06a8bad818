"""The zip that torch.save writes: finds its records in the file and checks every number in it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from adept_fast.checkpoint.base import CheckpointError
from adept_fast.checkpoint.file_range import FileRange
from adept_fast.checkpoint.pickle_values import printable

# A model of 36 layers has some 700 records, with its optimizer's state four times that.
_MAX_RECORDS = 2**16
_MAX_DIRECTORY_BYTES = 16 * 2**20
_CHECKED_BYTES = 64 * 2**20  # at a time

# APPNOTE.TXT of PKWARE, sections 4.3 and 4.5. All numbers are little-endian.
_END = struct.Struct("<4s4H2IH")
_END64_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_FIELD = struct.Struct("<2H")
_ENCRYPTED = 0x1
_ZIP64_FIELD = 1
_SEE_ZIP64 = 2**32 - 1


@dataclass
class Record:
    """A stored record: the offset of its bytes in the file, their number, and their CRC-32."""

    name: str
    start: int
    size: int
    crc: int
    verified: bool = False


@dataclass(frozen=True)
class _Entry:
    """An entry of the central directory."""

    name: bytes
    header: int
    size: int
    crc: int


def read_zip_records(file: FileRange) -> dict[str, Record]:
    """The records of a zip by their names, in the order of their bytes.

    Raises CheckpointError if the file is no whole zip, is compressed or encrypted, has two records of one
    name, or records that overlap or reach beyond the file.
    """
    start, directory, count = _read_directory(file)
    entries = sorted(_entries(file, directory, count), key=lambda entry: entry.header)
    ends = [*(entry.header for entry in entries), start][1:]
    records: dict[str, Record] = {}
    for entry, end in zip(entries, ends, strict=False):
        record = _record(file, entry, end)
        if record.name in records:
            raise CheckpointError(f"{file.label}: two zip records have the name '{printable(record.name)}'")
        records[record.name] = record
    return records


def view_record(file: FileRange, record: Record, start: int, length: int, what: str) -> memoryview:
    """``length`` of a record's bytes from ``start``, memory-mapped or copied, as ``file.mmap`` selects.

    Raises CheckpointError, which names ``what``, if the record is damaged: its whole checksum is verified
    before the first bytes of it are returned.
    """
    contents = file.view(record.start + start, length)
    if not record.verified:
        found = zlib.crc32(contents) if length == record.size else _checksum(file, record)
        if found != record.crc:
            raise CheckpointError(
                f"{file.label}: {what} is damaged (its bytes have the CRC-32 {found:08x}, "
                f"the file calls for {record.crc:08x})"
            )
        record.verified = True
    return contents


def _checksum(file: FileRange, record: Record) -> int:
    found = 0
    for at in range(0, record.size, _CHECKED_BYTES):
        found = zlib.crc32(file.view(record.start + at, min(_CHECKED_BYTES, record.size - at)), found)
    return found


def read_record(file: FileRange, record: Record, limit: int) -> bytes:
    """A record's bytes; CheckpointError if there are more than ``limit``, or they are damaged."""
    what = f"the zip record '{printable(record.name)}'"
    if record.size > limit:
        raise CheckpointError(f"{file.label}: {what} has {record.size} bytes; expected at most {limit}")
    contents = file.read_at(record.start, record.size)
    if zlib.crc32(contents) != record.crc:
        raise CheckpointError(f"{file.label}: {what} is damaged (its CRC-32 differs)")
    return contents


def _not_a_zip(file: FileRange, found: str) -> CheckpointError:
    return file.not_valid(
        f"not a zip that can be read ({found}); expected a file of torch.save from version 1.6 on, whole"
    )


def _read_directory(file: FileRange) -> tuple[int, bytes, int]:
    """The offset of the central directory, its bytes, and the number of records that it lists.

    The structures behind it, by which it is found, must be as torch writes them.
    """
    at = file.size - _END.size
    if at < 0:
        raise _not_a_zip(file, f"it has {file.size} bytes")
    signature, disk, first_disk, here, count, size, start, comment = _unpack(file, _END, at)
    if signature != b"PK\x05\x06" or comment:
        raise _not_a_zip(file, "its last bytes are not the end of one")
    if at >= _END64_LOCATOR.size:
        signature, disk64, end64, disks = _unpack(file, _END64_LOCATOR, at - _END64_LOCATOR.size)
        if signature == b"PK\x06\x07":
            if end64 + _END64.size + _END64_LOCATOR.size != at or disk64 or disks != 1:
                raise _not_a_zip(file, "its 64-bit end is not where it says")
            signature, rest, _, _, disk, first_disk, here, count, size, start = _unpack(file, _END64, end64)
            at = end64
            if signature != b"PK\x06\x06" or rest != _END64.size - 12:
                raise _not_a_zip(file, "its 64-bit end is damaged")
    if disk or first_disk or here != count or start + size != at:
        raise _not_a_zip(file, "its directory is not where it says")
    if count > _MAX_RECORDS or size > _MAX_DIRECTORY_BYTES:
        raise CheckpointError(
            f"{file.label}: the zip lists {count} records in {size} bytes; "
            f"expected at most {_MAX_RECORDS} in {_MAX_DIRECTORY_BYTES}"
        )
    return start, file.read_at(start, size), count


def _entries(file: FileRange, directory: bytes, count: int) -> Iterator[_Entry]:
    at, size = 0, len(directory)
    for _ in range(count):
        if at + _ENTRY.size > size:
            raise _not_a_zip(file, "its directory ends early")
        entry = _ENTRY.unpack_from(directory, at)
        signature, _, _, flags, method, _, _, crc, packed, plain, *lengths, _, _, _, header = entry
        at += _ENTRY.size
        name, extra, _ = (directory[at + sum(lengths[:i]) : at + sum(lengths[: i + 1])] for i in range(3))
        at += sum(lengths)
        if signature != b"PK\x01\x02" or at > size:
            raise _not_a_zip(file, "its directory is damaged")
        plain, packed, header = _zip64_numbers(file, extra, [plain, packed, header])
        if method or flags & _ENCRYPTED:
            raise CheckpointError(
                f"{file.label}: the zip record '{_shown(name)}' is compressed or encrypted; "
                f"expected it stored"
            )
        if plain != packed:
            raise CheckpointError(
                f"{file.label}: the zip record '{_shown(name)}' claims {plain} bytes and stores {packed}"
            )
        yield _Entry(name, header, plain, crc)
    if at != size:
        raise _not_a_zip(file, "its directory goes on after its last entry")


def _zip64_numbers(file: FileRange, extra: bytes, numbers: list[int]) -> list[int]:
    """The numbers; those that do not fit into 32 bits are read from the extra field, in 64 bits."""
    missing = [at for at, number in enumerate(numbers) if number == _SEE_ZIP64]
    if not missing:
        return numbers
    at = 0
    while at + _FIELD.size <= len(extra):
        field, length = _FIELD.unpack_from(extra, at)
        at += _FIELD.size
        if field == _ZIP64_FIELD and length >= 8 * len(missing) and at + length <= len(extra):
            wide = struct.unpack_from(f"<{len(missing)}Q", extra, at)
            found = dict(zip(missing, wide, strict=True))
            return [found.get(at, number) for at, number in enumerate(numbers)]
        at += length
    raise _not_a_zip(file, "a size of 64 bits is missing")


def _record(file: FileRange, entry: _Entry, end: int) -> Record:
    """The record of an entry. Only its local header has the length of that header."""
    name = _shown(entry.name)
    if entry.header + _LOCAL.size > end:
        raise _not_a_zip(file, f"there is no room for the record '{name}'")
    signature, *_, name_length, extra_length = _unpack(file, _LOCAL, entry.header)
    start = entry.header + _LOCAL.size + name_length + extra_length
    if signature != b"PK\x03\x04" or name_length != len(entry.name):
        raise _not_a_zip(file, f"the record '{name}' has no header")
    if start + entry.size > end:
        raise CheckpointError(
            f"{file.label}: the zip record '{name}' claims {entry.size} bytes, "
            f"which the file does not have there"
        )
    if file.read_at(entry.header + _LOCAL.size, name_length) != entry.name:
        raise _not_a_zip(file, f"the record '{name}' has another name in its header")
    return Record(entry.name.decode("utf-8", "backslashreplace"), start, entry.size, entry.crc)


def _shown(name: bytes) -> str:
    return printable(name.decode("utf-8", "backslashreplace"))


def _unpack(file: FileRange, format_: struct.Struct, at: int) -> tuple[Any, ...]:
    return format_.unpack(file.read_at(at, format_.size))

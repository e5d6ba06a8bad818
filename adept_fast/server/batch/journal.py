"""Journal: the answers of a batch that is not complete, in the order in which they came.

A file of one header and any number of records, each of which is appended by one write::

    header   a line of JSON: {"journal of adept-fast batch": 1, "sum": …, "batch": {…}}
    record   index uint64, length uint32 (little endian), sum 8 bytes, the answer

A sum is the BLAKE2b hash of what it covers, keyed with that of the header for records. A process that is
killed leaves a part of a record at most, a system that fails any part of what was not synced; so reading ends
at the first record whose sum is wrong, and what follows is cut off and computed again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import struct
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adept_fast.server.batch.batch_error import BatchError
from adept_fast.system.json_file import parse_json
from adept_fast.system.json_text import json_text
from adept_fast.system.regular_file import FileError

_FORMAT = "journal of adept-fast batch"
_VERSION = 1
_BEGINNING = f'{{"{_FORMAT}": '.encode()
_MAX_HEADER_BYTES = 2**16
_SUM_BYTES = 8
_HEAD = struct.Struct(f"<QI{_SUM_BYTES}s")
_SYNC_SECONDS = 1.0
_ABSENT = -1
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Journal:
    """An open journal, which no other process can open until ``close``, or the end of this one.

    ``header`` is that of the batch, None if the journal is new. Answers can be read and added after ``begin``
    or ``resume``; ``count`` is how many there are, ``dropped_bytes`` the length of the damaged end that was
    cut off.

    Args:
        path: of the file, which is created if it is not there.

    Raises BatchError if another process has it open, or it is something else, and OSError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: dict[str, Any] | None = None
        self.dropped_bytes = 0
        self.count = 0
        self._offsets, self._lengths = array("q"), array("I")
        self._key = b""
        self._synced_at = time.monotonic()
        self._descriptor = _locked(path)
        try:
            self._end = self._read_header()
        except BaseException:
            self._release()
            raise

    def begin(self, header: dict[str, Any], lines: int) -> None:
        """Write the header of a new journal for that many answers, and wait until it is on disk."""
        assert self.header is None
        self._make_room(lines)
        line = _header_line(header)
        with self._named():
            os.ftruncate(self._descriptor, 0)  # a header that was cut short
            _write(self._descriptor, line)
            os.fsync(self._descriptor)
            sync_directory(self.path)
        self.header, self._key, self._end = header, _sum(line), len(line)

    def resume(self, lines: int) -> None:
        """Read the answers of an earlier process; the indices of ``lines`` ones begin with 0."""
        assert self.header is not None
        self._make_room(lines)
        self._read_records()

    def __contains__(self, index: int) -> bool:
        return self._offsets[index] != _ABSENT

    def add(self, index: int, answer: bytes) -> None:
        """Append an answer; one that is there already is kept, and the new one dropped."""
        assert self.header is not None
        if index in self:
            return
        record = _record(index, answer, self._key)
        with self._named():
            _write(self._descriptor, record)
        self._note(index, len(answer))
        if time.monotonic() - self._synced_at >= _SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Wait until all answers are on disk."""
        with self._named():
            os.fdatasync(self._descriptor)
        self._synced_at = time.monotonic()

    def read(self, index: int) -> bytes:
        """An answer that is there. Raises BatchError if it is damaged."""
        offset, length = self._offsets[index] - _HEAD.size, self._lengths[index]
        with self._named():
            record = os.pread(self._descriptor, _HEAD.size + length, offset)
        answer = record[_HEAD.size :]
        if record != _record(index, answer, self._key) or len(answer) != length:
            raise BatchError(
                f"{self.path}: has changed since it was written; expected no other program to write to it"
            )
        return answer

    def answers(self) -> Iterator[bytes]:
        """All answers that are there, in the order of their indices."""
        return (self.read(index) for index in range(len(self._offsets)) if index in self)

    def remove(self) -> None:
        """Remove the file, and close it."""
        with self._named():
            os.unlink(self.path)
            sync_directory(self.path)
        self._release()

    def close(self) -> None:
        """Let other processes open it, or remove it if it was not begun. May be called again."""
        if self._descriptor >= 0 and self.header is None:
            os.unlink(self.path)
        self._release()

    def _release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _make_room(self, lines: int) -> None:
        self._offsets = array("q", [_ABSENT]) * lines
        self._lengths = array("I", [0]) * lines

    def _read_header(self) -> int:
        """Set the header; returns the offset behind it."""
        beginning = os.pread(self._descriptor, _MAX_HEADER_BYTES, 0)
        line, end, _ = beginning.partition(b"\n")
        if not end and _is_cut_short(beginning):
            return 0  # no answer was written
        found = _batch_of(line + end)
        if found is None:
            raise BatchError(f"{self.path}: is no journal of this program; expected one, or no such file")
        self.header, self._key = found, _sum(line + end)
        return len(line + end)

    def _read_records(self) -> None:
        size = os.fstat(self._descriptor).st_size
        while self._end + _HEAD.size <= size:
            index, length, expected = _HEAD.unpack(os.pread(self._descriptor, _HEAD.size, self._end))
            is_new = index < len(self._offsets) and index not in self
            if not is_new or self._end + _HEAD.size + length > size:
                break
            answer = os.pread(self._descriptor, length, self._end + _HEAD.size)
            if _sum(answer, index, self._key) != expected:
                break
            self._note(index, length)
        self.dropped_bytes = size - self._end
        if self.dropped_bytes:
            os.ftruncate(self._descriptor, self._end)

    def _note(self, index: int, length: int) -> None:
        """Remember the record at the end."""
        self._offsets[index], self._lengths[index] = self._end + _HEAD.size, length
        self._end += _HEAD.size + length
        self.count += 1

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Add the name of the file to an OSError."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error


def _is_cut_short(contents: bytes) -> bool:
    """Whether a file without an end of line is the beginning of a header, and not a damaged journal.

    A record has zeros before other bytes; at the end a failing system leaves zeros for what it did not write.
    """
    text = contents.rstrip(b"\0")
    is_like_it = _BEGINNING.startswith(text[: len(_BEGINNING)])
    return is_like_it and b"\0" not in text and len(contents) < _MAX_HEADER_BYTES


def _record(index: int, answer: bytes, key: bytes) -> bytes:
    return _HEAD.pack(index, len(answer), _sum(answer, index, key)) + answer


def _sum(content: bytes, index: int = 0, key: bytes = b"") -> bytes:
    digest = hashlib.blake2b(struct.pack("<Q", index), digest_size=_SUM_BYTES, key=key)
    digest.update(content)
    return digest.digest()


def _header_line(header: dict[str, Any]) -> bytes:
    values = {_FORMAT: _VERSION, "sum": _sum(json_text(header).encode()).hex(), "batch": header}
    return json_text(values).encode() + b"\n"


def _batch_of(line: bytes) -> dict[str, Any] | None:
    """The header that a line holds; None if it is not one that ``_header_line`` has written."""
    try:
        batch = parse_json(line, "").get("batch")
    except FileError:
        return None
    return batch if isinstance(batch, dict) and _header_line(batch) == line else None


def _locked(path: Path) -> int:
    """A descriptor of the file that holds its lock, which ends with the process."""
    while True:
        try:
            descriptor = os.open(path, _FLAGS, 0o666)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BatchError(f"{path}: is no regular file; expected a journal, or no such file")
            _lock(descriptor, path)
            if _is_still(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # another process has removed it between the two calls


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BatchError(
            f"{path}: another process writes this batch; expected it to have ended, or another output"
        ) from error
    except OSError:
        return  # a file system without locks


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the name stands for the file that was opened by it."""
    try:
        named = os.lstat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(descriptor))


def _write(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]


def sync_directory(path: Path) -> None:
    """Wait until the name of a file, or that it has none any more, is on disk."""
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""LineIndex: where the lines of an input file are; the lines themselves stay there."""

from __future__ import annotations

import codecs
import hashlib
import zlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adept_fast.server.batch.batch_error import BatchError
from adept_fast.server.batch.line import MAX_BYTES, Line
from adept_fast.server.batch.line_error import LineError
from adept_fast.system.regular_file import RegularFile

_CHUNK_BYTES = 2**20
_DIGEST_BYTES = 16
_NO_ID = bytes(_DIGEST_BYTES)
_MARK = codecs.BOM_UTF8  # at the beginning of a file
_MAX_HELD_BYTES = len(_MARK) + MAX_BYTES + len(b"\r")  # of a line while it is read


@dataclass(frozen=True)
class LocatedLine:
    """A line's index and number, and where its bytes are in the file, with their CRC-32."""

    index: int
    number: int
    offset: int
    length: int
    checksum: int


def read_located(file: RegularFile, line: LocatedLine) -> bytes:
    """The bytes of a line. Raises FileError or BatchError if the file has changed since it was located."""
    content = file.read_at(line.offset, line.length)
    if zlib.crc32(content) != line.checksum:
        raise BatchError(f"{file.path}: line {line.number} has changed; expected the input to stay as it is")
    return content


class LineIndex:
    """The lines of a file that are not empty; their indices begin with 0, in the order of the file.

    LF ends a line, and a CR before it belongs to the end. About 100 bytes of memory are needed for each line.
    ``digest`` is the SHA-256 of the file, ``openai_number`` the number of the first request of OpenAI's API,
    None without any.

    Args:
        on_read: called with the number of bytes that were read since the last call.

    Raises FileError if the file cannot be read.
    """

    def __init__(self, path: Path, on_read: Callable[[int], object] = lambda _: None) -> None:
        self.path = path
        self.openai_number: int | None = None
        self._file = RegularFile(path)
        self._numbers, self._offsets, self._lengths = array("Q"), array("Q"), array("Q")
        self._sums, self._tokens = array("I"), array("Q")
        ids = bytearray()
        digest = hashlib.sha256()
        for number, offset, length, content in self._scan(digest.update, on_read):
            self._add(number, offset, length, content, ids)
        self.digest = digest.hexdigest()
        self._first = _first_of_id(ids)

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def size(self) -> int:
        """Of the file, in bytes."""
        return self._file.size

    def number(self, index: int) -> int:
        """The number of a line in the file, from 1."""
        return self._numbers[index]

    def length(self, index: int) -> int:
        """Of a line, in bytes."""
        return self._lengths[index]

    def longest_first(self) -> array[int]:
        """All indices, first those whose answers should take the longest."""
        order = np.argsort(-np.frombuffer(self._tokens, np.int64), kind="stable")
        return array("q", order.astype(np.int64).tobytes())

    def refusal(self, index: int) -> LineError | None:
        """Why a line gets no answer, if that is known without its contents."""
        if self._lengths[index] > MAX_BYTES:
            length = self._lengths[index]
            message = f"line {self.number(index)} has {length} bytes; expected at most {MAX_BYTES}"
            return LineError(message, code="line_too_long")
        first = int(self._first[index])
        if first != index:
            message = f"custom_id is that of line {self.number(first)} too; expected one of its own"
            return LineError(message, "custom_id", "duplicate_custom_id")
        return None

    def locate(self, index: int) -> LocatedLine:
        """Where to read a line for which there is no ``refusal``."""
        offset, length = self._offsets[index], self._lengths[index]
        return LocatedLine(index, self._numbers[index], offset, length, self._sums[index])

    def read(self, index: int) -> bytes:
        """A line without its end, for which there is no ``refusal``. Raises as ``read_located``."""
        return read_located(self._file, self.locate(index))

    def _add(self, number: int, offset: int, length: int, content: bytes | None, ids: bytearray) -> None:
        """Note a line; ``content`` is None if it is too long."""
        custom_id, tokens = None, 0
        if content is not None:
            try:
                line = Line.parse(number, content)
                if line.is_of_openai and self.openai_number is None:
                    self.openai_number = number
                tokens = line.expected_tokens(length)
                custom_id = line.custom_id
            except LineError:
                pass  # the line's answer will say so
        self._numbers.append(number)
        self._offsets.append(offset)
        self._lengths.append(length)
        self._sums.append(0 if content is None else zlib.crc32(content))
        self._tokens.append(tokens)
        ids += _NO_ID if custom_id is None else _digest(custom_id)

    def _scan(
        self, update: Callable[[bytes], object], on_read: Callable[[int], object]
    ) -> Iterator[tuple[int, int, int, bytes | None]]:
        """Number, offset, length and contents of each line; None in place of contents that are too long."""
        number, start, held = 1, 0, bytearray()
        size, length = self._file.size, 0  # length: of the line so far, of which a part may be held
        for offset in range(0, size, _CHUNK_BYTES):
            chunk = self._file.read_at(offset, min(_CHUNK_BYTES, size - offset))
            update(chunk)
            on_read(len(chunk))
            at = 0
            while (end := chunk.find(b"\n", at)) >= 0:
                held += chunk[at : min(end, at + _MAX_HELD_BYTES - len(held))]
                yield from _line(number, start, length + end - at, held)
                number, start, length, at = number + 1, offset + end + 1, 0, end + 1
                held.clear()
            held += chunk[at : at + _MAX_HELD_BYTES - len(held)]
            length += len(chunk) - at
        yield from _line(number, start, length, held)


def _line(
    number: int, start: int, length: int, held: bytearray
) -> Iterator[tuple[int, int, int, bytes | None]]:
    """The line without a byte order mark and its end, unless it is empty."""
    if number == 1 and held.startswith(_MARK):
        start, length = start + len(_MARK), length - len(_MARK)
        del held[: len(_MARK)]
    if len(held) == length and held.endswith(b"\r"):
        length -= 1
        del held[-1:]
    if length > MAX_BYTES:
        yield number, start, length, None
    elif held.strip():
        yield number, start, length, bytes(held)


def _digest(custom_id: str) -> bytes:
    return hashlib.sha256(custom_id.encode("utf-8")).digest()[:_DIGEST_BYTES]


def _first_of_id(ids: bytearray) -> np.ndarray[Any, np.dtype[np.int64]]:
    """For each line the index of the first one with its id, its own if it is that one or has no id."""
    halves = np.frombuffer(ids, np.uint64).reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: of one id, the first line comes first
    ordered = halves[order]
    is_new = np.ones(len(ordered), bool)
    is_new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1) | ~ordered[1:].any(axis=1)
    starts = np.maximum.accumulate(np.where(is_new, np.arange(len(ordered)), 0))
    first = np.empty(len(ordered), np.int64)
    first[order] = order[starts]
    return first

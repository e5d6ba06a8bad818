"""Text input: one rule for prompt files, standard input and JSON files.

Text is UTF-8. A byte order mark at the beginning is dropped. LF, CRLF and a lone CR end a line and are read
as LF; nothing else ends one (form feed, U+0085 and U+2028 are characters of the line).
"""

from __future__ import annotations

import codecs
import re
import sys
from collections.abc import Callable
from io import BufferedIOBase
from pathlib import Path
from typing import cast

MAX_BYTES = 64 * 2**20  # of a file or of a line: a file may have no end, such as /dev/zero
STDIN = "stdin"  # its name in errors

_CHUNK_BYTES = 2**16
_LINE_END = re.compile(rb"[\r\n]")


class TextError(ValueError):
    """Bytes that are not text by this rule; the message names the source."""


def read_text(path: str | Path) -> str:
    """The text of a file, with LF at the end of each line that has one.

    Raises TextError for bytes that are not UTF-8 or more than MAX_BYTES, and OSError.
    """
    with open(path, "rb") as file:
        return _read_all(file, str(path))


def read_stdin() -> str:
    """The text of standard input to its end. Raises like ``read_text``, and TextError if it is closed."""
    return _read_all(_open_stdin(), STDIN)


def decode_text(data: bytes, source: str, *, first_line: int = 1, first_byte: int = 0) -> str:
    """The text in ``data``.

    Args:
        source: its name in errors.
        first_line, first_byte: the number of its first line and the offset of its first byte in the source.

    Raises TextError with the line and offset of the first byte that is not UTF-8.
    """
    mark = len(codecs.BOM_UTF8) if first_byte == 0 and data.startswith(codecs.BOM_UTF8) else 0
    try:
        return _with_line_feeds(data[mark:].decode("utf-8"))
    except UnicodeDecodeError as error:
        start = mark + error.start
        line = first_line + _with_line_feeds(data[mark:start].decode("utf-8")).count("\n")
        raise TextError(f"{source}: not UTF-8 text (line {line}, byte {first_byte + start})") from error


class LineReader:
    """The lines of a binary stream, each as soon as it has ended.

    ``number`` is the number of the line that was read last, from 1. Bytes that are not UTF-8, or more than
    MAX_BYTES, spoil their line alone: the next call reads the line after it.
    """

    def __init__(self, stream: BufferedIOBase, source: str) -> None:
        self.number = 0
        self._stream = stream
        self._source = source
        self._chunk = b""
        self._at = 0  # in the chunk
        self._offset = 0  # of that byte in the stream
        self._after_cr = False

    @classmethod
    def of_stdin(cls) -> LineReader:
        """Raises TextError if standard input is closed."""
        return cls(_open_stdin(), STDIN)

    def read(self) -> str | None:
        """The next line without its end; None after the last one. Raises TextError and OSError."""
        # A line may end at a CR with nothing behind it yet, so the LF of a CRLF is left to the next call.
        if self._after_cr and self._fill() and self._chunk[self._at : self._at + 1] == b"\n":
            self._advance(1)
        self._after_cr = False
        first_byte, line, size = self._offset, bytearray(), 0
        while self._fill():
            end = _LINE_END.search(self._chunk, self._at)
            part = self._chunk[self._at : end.start() if end else None]
            size += len(part)
            line += part[: MAX_BYTES + 1 - len(line)]
            self._advance(len(part) + (end is not None))
            if end is not None:
                self._after_cr = end[0] == b"\r"
                break
        if self._offset == first_byte:
            return None
        self.number += 1
        if size > MAX_BYTES:
            raise TextError(
                f"{self._source}: line {self.number} has {size} bytes; expected at most {MAX_BYTES}"
            )
        return decode_text(bytes(line), self._source, first_line=self.number, first_byte=first_byte)

    def _fill(self) -> bool:
        """Whether there is a byte to be read."""
        if self._at == len(self._chunk):
            self._chunk, self._at = _named(lambda: self._stream.read1(_CHUNK_BYTES), self._source), 0
        return bool(self._chunk)

    def _advance(self, count: int) -> None:
        self._at += count
        self._offset += count


def _read_all(stream: BufferedIOBase, source: str) -> str:
    data = _named(lambda: stream.read(MAX_BYTES + 1), source)
    if len(data) > MAX_BYTES:
        raise TextError(f"{source}: has more than {MAX_BYTES} bytes; expected at most that")
    return decode_text(data, source)


def _named(read: Callable[[], bytes], source: str) -> bytes:
    """The result of ``read``, whose OSError names the source."""
    try:
        return read()
    except OSError as error:
        raise OSError(error.errno, error.strerror, source) from error


def _open_stdin() -> BufferedIOBase:
    if sys.stdin is None:  # Python sets this if the descriptor is closed
        raise TextError(f"{STDIN} is closed; expected text to read")
    return cast("BufferedIOBase", sys.stdin.buffer)


def _with_line_feeds(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")

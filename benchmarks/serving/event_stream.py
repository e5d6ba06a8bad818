"""Reads the answer to an HTTP/1.1 request as it arrives, and the server-sent events in it."""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_HEADER_BYTES = 1 << 16


class AnswerError(ValueError):
    """The bytes are no answer of HTTP/1.1."""


@dataclass
class EventStream:
    """Takes pieces of an answer, cut anywhere; ``feed`` returns the data of the events that are complete.

    ``status`` is 0 until the header has arrived. ``body`` keeps what is not an event yet: after the end of an
    answer that is no stream, its whole body. ``is_complete``: the last chunk has arrived; an answer without
    chunks ends with the connection or its Content-Length.
    """

    status: int = 0
    is_complete: bool = False
    body: bytes = b""
    _raw: bytes = b""
    _is_chunked: bool = False
    _left: int | None = None  # bytes of a chunk, or of the body; None: of a chunk whose size is not known yet
    _lines: list[bytes] = field(default_factory=list)  # data lines of the event that is not complete

    def feed(self, piece: bytes) -> list[str]:
        """Raises AnswerError."""
        self._raw += piece
        if not self.status and not self._take_header():
            return []
        self.body += self._take_chunks() if self._is_chunked else self._take_plain()
        return self._take_events()

    def _take_header(self) -> bool:
        header, found, rest = self._raw.partition(b"\r\n\r\n")
        if not found:
            if len(self._raw) > MAX_HEADER_BYTES:
                raise AnswerError(f"the header has over {MAX_HEADER_BYTES} bytes")
            return False
        first, *lines = header.split(b"\r\n")
        words = first.split(b" ", 2)
        if not words[0].startswith(b"HTTP/1.") or len(words) < 2 or not words[1].isdigit():
            raise AnswerError(f"the answer begins with {first[:80]!r}; expected HTTP/1.1 and a status")
        fields = {}
        for line in lines:
            name, _, value = line.partition(b":")
            fields[name.strip().lower()] = value.strip().lower()
        self.status, self._raw = int(words[1]), rest
        self._is_chunked = fields.get(b"transfer-encoding") == b"chunked"
        if not self._is_chunked and b"content-length" in fields:
            self._left = int(fields[b"content-length"])
        return True

    def _take_plain(self) -> bytes:
        taken, self._raw = self._raw, b""
        if self._left is not None:
            self._left -= len(taken)
            self.is_complete = self._left <= 0
        return taken

    def _take_chunks(self) -> bytes:
        taken = []
        while not self.is_complete:
            if self._left is None:
                line, found, rest = self._raw.partition(b"\r\n")
                if not found:
                    break
                try:
                    self._left = int(line.partition(b";")[0], 16)
                except ValueError as error:
                    raise AnswerError(f"a chunk's size is {line[:20]!r}; expected hexadecimal") from error
                self._raw = rest
                self.is_complete = self._left == 0
            elif len(self._raw) < self._left + 2:  # its CRLF included
                break
            else:
                taken.append(self._raw[: self._left])
                self._raw = self._raw[self._left + 2 :]
                self._left = None
        return b"".join(taken)

    def _take_events(self) -> list[str]:
        if self.status != 200:
            return []
        events = []
        *lines, self.body = self.body.split(b"\n")
        for line in (each.removesuffix(b"\r") for each in lines):
            if line.startswith(b"data:"):
                self._lines.append(line.removeprefix(b"data:").removeprefix(b" "))
            elif not line and self._lines:
                events.append(b"\n".join(self._lines).decode("utf-8", "replace"))
                self._lines.clear()
        return events

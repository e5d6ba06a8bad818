"""Server-sent events, from bytes that arrive in any pieces."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

MAX_EVENT_BYTES = 2**20  # of an event: a server may send one without an end

_LINE_END = re.compile(rb"\r\n|\r(?!\Z)|\n")  # a CR at the end of what has arrived may be half of a CRLF
_MARK = "\ufeff"


class EventStreamError(ValueError):
    """A stream with an event that is larger than MAX_EVENT_BYTES."""


def event_data(read: Callable[[], bytes]) -> Iterator[str]:
    """The data of each event. An event without the empty line behind it does not count, nor do comments.

    Args:
        read: returns the bytes that have arrived, at least one of them; none at the end.
    """
    data: list[str] = []
    size = 0
    for line in _lines(read):
        name, _, value = line.partition(":")
        if name == "data":
            data.append(value.removeprefix(" "))
            size += len(line)
            if size > MAX_EVENT_BYTES:
                raise _too_large()
        elif not line:
            if data:
                yield "\n".join(data)
            data, size = [], 0


def _lines(read: Callable[[], bytes]) -> Iterator[str]:
    """The lines that have ended, which LF, CRLF and CR do. Bytes that are not UTF-8 become U+FFFD."""
    rest: list[bytes] = []  # the beginning of the line that has not ended yet
    size = 0
    mark = _MARK
    while piece := read():
        if rest and rest[-1].endswith(b"\r"):
            size -= len(rest[-1])
            piece = rest.pop() + piece
        *ended, begun = _LINE_END.split(piece)
        for line in ended:
            yield _text([*rest, line]).removeprefix(mark)
            rest, size, mark = [], 0, ""
        rest.append(begun)
        size += len(begun)
        if size > MAX_EVENT_BYTES:
            raise _too_large()
    if (line := b"".join(rest)).endswith(b"\r"):
        yield _text([line[:-1]]).removeprefix(mark)


def _text(parts: list[bytes]) -> str:
    return b"".join(parts).decode("utf-8", errors="replace")


def _too_large() -> EventStreamError:
    return EventStreamError(f"has an event of more than {MAX_EVENT_BYTES} bytes")

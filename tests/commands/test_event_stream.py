"""Server-sent events: what counts as one, however its bytes arrive."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adept_fast.commands.event_stream import MAX_EVENT_BYTES, EventStreamError, event_data


def events(*pieces: bytes) -> list[str]:
    """Those in a stream that arrives in these pieces, of which none may be empty."""
    arriving = iter([*pieces, b""])
    return list(event_data(lambda: next(arriving)))


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: a\n\ndata: b\n\n", ["a", "b"]),
        (b"data: a\r\n\r\ndata: b\r\rdata: c\n\r\n", ["a", "b", "c"]),
        (b"data: first\ndata: second\ndata\ndata:\n\n", ["first\nsecond\n\n"]),
        (b"data:no space\n\ndata:  two\n\n", ["no space", " two"]),
        (b": a comment\n\nevent: ping\nid: 1\nretry: 5\n\ndata: a\n: in between\n\n", ["a"]),
        (b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: no field\n\n", ["a"]),
        (b"data: \xc3\xa9\xe2\x86\x92\xf0\x9f\x98\x80\n\n", ["\u00e9\u2192\U0001f600"]),
        (b"data: \xff\xc3\n\n", ["\ufffd\ufffd"]),
        (b"data: x\x0b\x0c\xe2\x80\xa8\xc2\x85y\n\n", ["x\x0b\x0c\u2028\x85y"]),
        (b"data: a\n\ndata: cut", ["a"]),
        (b"data: a\n\ndata: cut\n", ["a"]),
        (b"\n\n\r\n\n", []),
        (b"nonsense\n\ndatabase: a\n\n data: b\n\n", []),
        (b"", []),
    ],
)
def test_examples_in_pieces_of_every_size(stream: bytes, expected: list[str]) -> None:
    for size in range(1, len(stream) + 1):
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert events(*pieces) == expected, size


@given(
    st.lists(st.sampled_from([b"data: a", b"data:", b"\r", b"\n", b"\r\n", b":", b"\xc3\xa9", b"x"])),
    st.lists(st.integers(1, 9), min_size=1),
)
def test_pieces_do_not_matter(parts: list[bytes], sizes: list[int]) -> None:
    def pieces(stream: bytes) -> Iterator[bytes]:
        while stream:
            for size in sizes:
                if stream:
                    yield stream[:size]
                stream = stream[size:]

    stream = b"".join(parts)
    whole = [stream] if stream else []
    assert events(*pieces(stream)) == events(*whole)


@pytest.mark.parametrize(
    "endless", [b"data: " + b"x" * 2**16, b"x" * 2**16, b"data: x\n" * 2**13, b"x\r" * 9]
)
def test_an_event_without_an_end(endless: bytes) -> None:
    taken = 0

    def read() -> bytes:
        nonlocal taken
        taken += len(endless)
        assert taken <= 4 * MAX_EVENT_BYTES + 2**20
        return endless if taken < 3 * MAX_EVENT_BYTES else b""

    if endless.endswith(b"x\r"):  # lines of no field are dropped as they come
        assert list(event_data(read)) == []
    else:
        with pytest.raises(EventStreamError, match="1048576 bytes"):
            list(event_data(read))
        assert taken <= 2 * MAX_EVENT_BYTES


def test_an_event_is_there_as_soon_as_it_has_ended() -> None:
    pieces = [b"data: a\n\n", b"data: b\n\n"]
    stream = event_data(lambda: pieces.pop(0))
    assert next(stream) == "a"
    assert len(pieces) == 1

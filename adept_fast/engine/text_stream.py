"""TextStream: the text of one request, as it becomes known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn, SupportsIndex

from adept_fast.engine.engine import Engine
from adept_fast.engine.sequence import Generation, Request


class TextStream(Iterator[str]):
    """The pieces of one text. ``result`` is the Generation so far, complete once iteration has ended.

    The request begins with the first piece. It keeps its slot until it ends, is closed (``close``, or the end
    of a ``with``) or is garbage. One thread may go on where another stopped. Ctrl-C while a piece is awaited
    ends the stream.
    """

    def __init__(self, engine: Engine, request: Request, load_seconds: float) -> None:
        self._engine = engine
        self._handle = engine.prepare(request)
        self._load_seconds = load_seconds
        self._shown = 0  # characters that were returned
        self._has_begun = False

    def __next__(self) -> str:
        if not self._has_begun:
            self._has_begun = True
            self._handle.begin()
        try:
            for event in self._handle:
                if event.text:
                    return self._show(event.text)
        except KeyboardInterrupt:
            if rest := self.stop():
                return rest
        raise StopIteration

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("a TextStream can be neither copied nor pickled; its result can")

    def stop(self) -> str:
        """End the stream here; returns the rest of the text, some of which may have been held back."""
        sequence = self._handle.sequence
        if not self._has_begun:
            self._has_begun = True
            sequence.interrupt()
        self._engine.end([sequence])
        sequence.events.clear()
        return self._show(sequence.text[self._shown :])

    def close(self) -> None:
        """``stop``, for those who need no more text."""
        self.stop()

    @property
    def result(self) -> Generation:
        return self._handle.sequence.generation(self._load_seconds)

    def _show(self, piece: str) -> str:
        self._shown += len(piece)
        return piece

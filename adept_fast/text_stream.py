"""TextStream: the text of one generation, as it becomes known."""

from __future__ import annotations

from collections.abc import Iterator

from adept_fast.sequence import Generation, Sequence


class TextStream(Iterator[str]):
    """The pieces of one generation. ``result`` is the Generation so far, complete once iteration has ended.

    Ctrl-C while a piece is awaited ends the stream with what there is.
    """

    def __init__(self, sequence: Sequence, pieces: Iterator[str], load_seconds: float) -> None:
        self._sequence = sequence
        self._pieces = pieces
        self._load_seconds = load_seconds

    def __next__(self) -> str:
        try:
            for piece in self._pieces:
                if piece:
                    return piece
        except KeyboardInterrupt:
            rest = self.stop()
            if rest:
                return rest
        raise StopIteration

    def stop(self) -> str:
        """End the stream here; returns text that was held back in case a stop string would come of it."""
        self._pieces = iter(())
        return self._sequence.interrupt() if self._sequence.finish_reason is None else ""

    @property
    def result(self) -> Generation:
        return self._sequence.generation(self._load_seconds)

"""TextStream: the text of one generation, as it becomes known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn, SupportsIndex

from adept_fast.engine.run_lock import Run
from adept_fast.engine.sequence import Generation, GenerationError, Sequence


class TextStream(Iterator[str]):
    """The pieces of one generation. ``result`` is the Generation so far, complete once iteration has ended.

    From its first piece on it has the Runtime to itself, and calls of other threads wait, until it ends, is
    closed (``close``, or the end of a ``with``) or is garbage. A call of the thread that got the last piece
    ends it instead: the next piece is then a GenerationError. One thread may go on where another stopped.
    Ctrl-C while a piece is awaited ends the stream with what there is.
    """

    def __init__(self, sequence: Sequence, run: Run[str], load_seconds: float) -> None:
        self._sequence = sequence
        self._run = run
        self._load_seconds = load_seconds
        self._shown = 0  # characters that were returned
        self._is_stopped = False

    def __next__(self) -> str:
        try:
            while not self._is_stopped:
                piece = next(self._run)
                if piece and not self._is_stopped:
                    self._shown += len(piece)
                    return piece
        except KeyboardInterrupt:
            self._is_stopped = True
        except StopIteration:
            if self._run.displaced:
                raise GenerationError(
                    "this stream ended when another generation began on the same Runtime"
                ) from None
            raise
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
        """End the stream here, with what there is.

        Returns text that was held back in case a stop string would come of it. While another thread awaits a
        piece, that one ends the stream, and gets that text.
        """
        self._is_stopped = True
        if not self._run.close():
            return ""
        if self._sequence.finish_reason is None:
            self._sequence.interrupt()
        rest = self._sequence.text[self._shown :]
        self._shown += len(rest)
        return rest

    def close(self) -> None:
        """``stop``, for those who need no more text."""
        self.stop()

    @property
    def result(self) -> Generation:
        return self._sequence.generation(self._load_seconds)

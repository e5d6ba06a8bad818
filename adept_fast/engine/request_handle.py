"""RequestHandle: the events of one request of an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from typing import Protocol

from adept_fast.engine.scheduler import Scheduled
from adept_fast.engine.sequence import Generation, GenerationEvent, Sequence


class Runner(Protocol):
    """What a handle needs of its engine."""

    def begin(self, handles: SequenceOf[RequestHandle]) -> None: ...

    def wait(self, is_done: Callable[[], bool], waited_for: SequenceOf[Scheduled]) -> None: ...

    def cancel(self, sequence: Scheduled) -> None: ...


class RequestHandle(Iterator[GenerationEvent]):
    """The events of one request, in order; iteration waits for the next one.

    A request makes progress while any thread waits for any request of its engine. Once its handle is garbage,
    it is cancelled.
    """

    def __init__(self, engine: Runner, sequence: Sequence) -> None:
        self.sequence, self._engine = sequence, engine

    def __next__(self) -> GenerationEvent:
        """Raises GenerationError if the logits hold a NaN, and what a step of the engine raises."""
        sequence = self.sequence
        self._engine.wait(lambda: bool(sequence.events) or sequence.is_finished, [sequence])
        if sequence.events:
            return sequence.events.popleft()
        if sequence.error is not None:
            raise sequence.error
        raise StopIteration

    def begin(self) -> None:
        """Queue the request, if it was only prepared."""
        self._engine.begin([self])

    def wait(self) -> None:
        """Return at the end of the request; raises what iteration does. The events stay to be read."""
        self._engine.wait(lambda: self.sequence.is_finished, [self.sequence])
        if self.sequence.error is not None:
            raise self.sequence.error

    def cancel(self) -> None:
        """End the request at the next step, which frees its slot; the last event says ``interrupted``."""
        self._engine.cancel(self.sequence)

    def result(self, load_seconds: float = 0.0) -> Generation:
        """Wait for the end; returns everything that was generated."""
        self.wait()
        return self.sequence.generation(load_seconds)

    def __del__(self) -> None:
        if "_engine" in vars(self):  # else Ctrl-C came while it was made
            self._engine.cancel(self.sequence)

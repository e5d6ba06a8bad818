"""LineRunner: answers lines on one Runtime, as many at a time as it has slots."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from adept_fast.arguments import ParameterError
from adept_fast.engine.request_handle import RequestHandle
from adept_fast.engine.runtime import Runtime
from adept_fast.server.batch.answer import failure
from adept_fast.server.batch.line import Line
from adept_fast.server.batch.line_error import LineError
from adept_fast.server.batch.line_task import LineTask
from adept_fast.server.batch.origin import BatchOrigin
from adept_fast.server.batch.plain_line import PlainLine
from adept_fast.server.settings import Settings

# A slot that becomes free takes the next request at once: it must wait already, with its prompt encoded.
_WAITING_FOR_A_SLOT = 1


@dataclass(frozen=True)
class Answered:
    """A line of the input with its line of the output.

    ``index`` is the one that came with the line; the counts are of tokens, 0 for a line that failed.
    """

    index: int
    answer: bytes
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class GivenLine:
    """A line of the input: an index for its answer, its number in the file, from 1, and its bytes."""

    index: int
    number: int
    content: bytes


@dataclass
class _Running:
    index: int
    task: LineTask
    handles: list[RequestHandle]

    @property
    def is_finished(self) -> bool:
        return all(handle.sequence.is_finished for handle in self.handles)


class LineRunner:
    """Answers the lines of one batch.

    Args:
        settings: the bounds of a request, and the model's name.
    """

    def __init__(self, runtime: Runtime, settings: Settings, origin: BatchOrigin) -> None:
        self._runtime, self._settings, self._origin = runtime, settings, origin

    def run(self, lines: Iterable[GivenLine]) -> Iterator[Answered]:
        """The answers, as they are ready. Lines are read a few ahead of those that run.

        Raises what a step of the engine raises; a line that is wrong, or cannot go on, has an error as its
        answer.
        """
        source = iter(lines)
        running: list[_Running] = []
        enough = self._runtime.max_batch_size * (1 + _WAITING_FOR_A_SLOT)
        is_read = False
        try:
            while True:
                while not is_read and _unfinished(running) < enough:
                    line = next(source, None)
                    if line is None:
                        is_read = True
                        break
                    begun = self._begin(line)
                    if isinstance(begun, Answered):
                        yield begun
                    else:
                        running.append(begun)
                if not running:
                    return
                self._wait(running)
                for entry in [entry for entry in running if entry.is_finished]:
                    running.remove(entry)
                    yield self._answered(entry)
        finally:
            for entry in running:
                for handle in entry.handles:
                    handle.cancel()

    def _begin(self, given: GivenLine) -> _Running | Answered:
        """The line with its requests queued, or with the error that is its answer."""
        line: Line | None = None
        task: LineTask | None = None
        try:
            line = Line.parse(given.number, given.content)
            task = self._task(line)
            handles = self._prepared(task)
        except LineError as error:
            answer = failure(self._origin, given.number, line, error) if task is None else task.failure(error)
            return Answered(given.index, answer)
        self._runtime.engine.begin(handles)
        return _Running(given.index, task, handles)

    def _task(self, line: Line) -> LineTask:
        if not line.is_of_openai:
            return PlainLine(line, self._runtime, self._settings, self._origin)
        from adept_fast.server.batch.openai_line import OpenAILine  # needs an extra

        return OpenAILine(line, self._runtime, self._settings, self._origin)

    def _prepared(self, task: LineTask) -> list[RequestHandle]:
        try:
            return [self._runtime.engine.prepare(request) for request in task.requests]
        except ParameterError as error:  # its message begins with the parameter's name
            raise LineError(str(error), str(error).split(maxsplit=1)[0]) from error

    def _wait(self, running: Sequence[_Running]) -> None:
        """Until a line is finished."""
        sequences = [handle.sequence for entry in running for handle in entry.handles]
        self._runtime.engine.wait(lambda: any(entry.is_finished for entry in running), sequences)

    def _answered(self, entry: _Running) -> Answered:
        errors = [handle.sequence.error for handle in entry.handles if handle.sequence.error is not None]
        if errors:
            return Answered(entry.index, entry.task.failure(_failed(errors[0])))
        generations = [handle.sequence.generation(self._runtime.load_seconds) for handle in entry.handles]
        return Answered(
            entry.index,
            entry.task.answer(generations),
            sum(generation.timings.prompt_tokens for generation in generations),
            sum(len(generation.token_ids) for generation in generations),
        )


def _failed(error: Exception) -> LineError:
    return LineError(str(error), code="invalid_logits", status=500)


def _unfinished(running: Sequence[_Running]) -> int:
    return sum(not handle.sequence.is_finished for entry in running for handle in entry.handles)

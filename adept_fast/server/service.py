"""Service: runs requests for coroutines. A thread steps the engine; answers are awaited on an event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence

from adept_fast.engine.request_handle import RequestHandle
from adept_fast.engine.runtime import Runtime
from adept_fast.engine.scheduler import QueueFullError
from adept_fast.engine.sequence import Generation, GenerationEvent, Request
from adept_fast.server.answer_seconds import AnswerSeconds
from adept_fast.server.answering import Load, ServiceStoppingError

_POLL_SECONDS = 0.05  # between looks at what still runs, while the service stops


class Answer(AsyncIterator[GenerationEvent]):
    """The events of one request, in order. One coroutine awaits them."""

    def __init__(self, handle: RequestHandle, load_seconds: float) -> None:
        self._handle, self._load_seconds = handle, load_seconds
        self._sequence = handle.sequence
        self._changed = asyncio.Event()
        self.submitted_at = time.monotonic()

    async def __anext__(self) -> GenerationEvent:
        """Raises GenerationError if the logits hold a NaN, RuntimeError if the engine's thread has ended."""
        while True:
            is_finished = self._sequence.is_finished  # read before the events: none comes after the end
            if self._sequence.events:
                return self._sequence.events.popleft()
            if self._sequence.error is not None:
                raise self._sequence.error
            if is_finished:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()

    def take(self) -> list[GenerationEvent]:
        """The further events that are there already."""
        events = []
        while self._sequence.events:
            events.append(self._sequence.events.popleft())
        return events

    @property
    def is_finished(self) -> bool:
        """Whether all events are there; some may still be unread."""
        return self._sequence.is_finished

    @property
    def has_begun(self) -> bool:
        """Whether the request has left the queue."""
        return self._sequence.slot >= 0

    def cancel(self) -> None:
        """End the request at the next step, which frees its slot; the last event says ``interrupted``."""
        self._handle.cancel()

    def generation(self) -> Generation:
        """The result so far, complete once iteration has ended."""
        return self._sequence.generation(self._load_seconds)

    def wake(self) -> None:
        """Have the waiting coroutine look for events; on the event loop."""
        if self._sequence.events or self._sequence.is_finished:
            self._changed.set()

    def fail(self, error: Exception) -> None:
        """End the request with an error, as nothing steps the engine any more; on the event loop."""
        if not self._sequence.is_finished:
            self._sequence.error = error
        self._changed.set()


class Service:
    """The requests of a server to one Runtime.

    Args:
        on_failure: called on the event loop if the engine's thread dies; ``failure`` is the reason.
    """

    def __init__(self, runtime: Runtime, on_failure: Callable[[], None] = lambda: None) -> None:
        self.runtime = runtime
        self.failure: BaseException | None = None
        self._on_failure = on_failure
        self._answers: set[Answer] = set()  # that are not finished
        self._answer_seconds = AnswerSeconds()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="adept-fast engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Start the engine's thread; on the event loop that will submit and await."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def model(self) -> Runtime:
        return self.runtime

    @property
    def is_ready(self) -> bool:
        """Whether requests are admitted."""
        return self._loop is not None and not self._is_stopping and self.failure is None

    def submit(self, requests: Sequence[Request]) -> list[Answer]:
        """Queue all requests, or none; on the event loop.

        Raises ParameterError for a prompt, QueueFullError, and ServiceStoppingError.
        """
        if not self.is_ready:
            raise ServiceStoppingError("the server is stopping; expected requests before that")
        handles = [self.runtime.engine.prepare(request) for request in requests]
        try:
            self.runtime.engine.begin(handles)
        except QueueFullError as error:
            error.retry_after_seconds = self._answer_seconds.until_room(self.load())
            raise
        answers = [Answer(handle, self.runtime.load_seconds) for handle in handles]
        self._answers.update(answer for answer in answers if not answer.is_finished)
        return answers

    def load(self) -> Load:
        """How much there is to do now."""
        running, waiting = self.runtime.engine.counts()
        return Load(self.runtime.max_batch_size, running, waiting)

    async def stop(self, grace_seconds: float) -> None:
        """Admit no more requests, let those that run or wait finish, and cancel what is left at last.

        Returns once the engine's thread has ended.
        """
        self._is_stopping = True
        deadline = time.monotonic() + grace_seconds
        while self._answers and self.failure is None and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
        for answer in self._answers:
            answer.cancel()
        while self._answers and self.failure is None:
            await asyncio.sleep(_POLL_SECONDS)
        if self._thread.is_alive():
            self.runtime.engine.stop_running()
            await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        """The engine's thread."""
        assert self._loop is not None
        try:
            self.runtime.engine.run(self._notify)
        except BaseException as error:  # noqa: BLE001 (whatever ended the thread, the server must learn of it)
            self.failure = error
            self._call_soon(self._fail)

    def _notify(self) -> None:
        self._call_soon(self._wake_answers)

    def _call_soon(self, callback: Callable[[], None]) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback)

    def _wake_answers(self) -> None:
        now = time.monotonic()
        for answer in tuple(self._answers):
            answer.wake()
            if answer.is_finished:
                self._answers.remove(answer)
                self._answer_seconds.add(now - answer.submitted_at)

    def _fail(self) -> None:
        error = RuntimeError(f"the engine has ended: {self.failure}")
        for answer in self._answers:
            answer.fail(error)
        self._answers = set()
        self._on_failure()

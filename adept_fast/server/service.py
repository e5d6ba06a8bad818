"""Service: runs requests of a Runtime for coroutines. A stand-in until the real one is here."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from adept_fast.engine.engine import RequestHandle
from adept_fast.engine.runtime import Runtime
from adept_fast.engine.sequence import Generation, GenerationEvent, Request


class ServiceStoppingError(RuntimeError):
    """No request is taken any more."""


@dataclass(frozen=True)
class Load:
    """What runs and waits."""

    running: int
    waiting: int
    slots: int


class Answer(AsyncIterator[GenerationEvent]):
    """The events of one request."""

    def __init__(self, handle: RequestHandle) -> None:
        self._handle = handle

    async def __anext__(self) -> GenerationEvent:
        event = await asyncio.to_thread(next, self._handle, None)
        if event is None:
            raise StopAsyncIteration
        return event

    def cancel(self) -> None:
        self._handle.cancel()

    def generation(self) -> Generation:
        return self._handle.sequence.generation(0.0)


class Service:
    """Runs requests of a Runtime for coroutines."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.failure: BaseException | None = None
        self._is_started = self._is_stopping = False
        self._answers: list[Answer] = []
        self._lock = threading.Lock()

    def start(self) -> None:
        self._is_started = True

    @property
    def is_ready(self) -> bool:
        return self._is_started and not self._is_stopping and self.failure is None

    def submit(self, requests: Sequence[Request]) -> list[Answer]:
        if self._is_stopping:
            raise ServiceStoppingError("the server is stopping")
        answers = [Answer(handle) for handle in self.runtime.engine.submit_all(requests)]
        self._answers += answers
        return answers

    async def stop(self, grace_seconds: float) -> None:
        self._is_stopping = True
        for answer in self._answers:
            answer.cancel()

    def load(self) -> Load:
        return Load(running=0, waiting=0, slots=self.runtime.max_batch_size)

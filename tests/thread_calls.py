"""Calls in other threads, and a lock's queue that tells when one has come to wait."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from adept_fast import Runtime, TextStream

PROMPTS = ["Once upon a time", "human: What is the capital of Peru?\n\nadept:", "a", "Humpty Dumpty sat"]


class Queue(deque[Any]):
    """Of a RunLock, that tells when somebody has come to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.arrivals = threading.Semaphore(0)

    def append(self, ticket: Any) -> None:
        super().append(ticket)
        if len(self) > 1:
            self.arrivals.release()

    def await_arrival(self) -> None:
        assert self.arrivals.acquire(timeout=60)


class Call(threading.Thread):
    """A call in another thread."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self.start()

    def run(self) -> None:
        self._outcome: Any = None
        self._error: BaseException | None = None
        try:
            self._outcome = self._call()
        except BaseException as error:  # noqa: BLE001 (raised again where the result is asked for)
            self._error = error

    def result(self) -> Any:
        self.join(timeout=60)
        assert not self.is_alive(), "the call waits forever"
        if self._error is not None:
            raise self._error
        return self._outcome


def waiting(runtime: Runtime) -> Queue:
    queue = runtime._lock._queue
    assert isinstance(queue, Queue)
    return queue


def half_done(runtime: Runtime) -> TextStream:
    stream = runtime.stream(PROMPTS[0], max_new_tokens=20, ignore_eos=True)
    next(stream)
    return stream


def ids(runtime: Runtime, prompt: str = PROMPTS[1]) -> list[int]:
    return runtime.generate(prompt, max_new_tokens=8).token_ids

"""Calls in other threads, and streams that are left half done."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from adept_fast import Runtime, TextStream

PROMPTS = ["Once upon a time", "human: What is the capital of Peru?\n\nadept:", "a", "Humpty Dumpty sat"]


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


def half_done(runtime: Runtime) -> TextStream:
    stream = runtime.stream(PROMPTS[0], max_new_tokens=20, ignore_eos=True)
    next(stream)
    return stream


def ids(runtime: Runtime, prompt: str = PROMPTS[1]) -> list[int]:
    return runtime.generate(prompt, max_new_tokens=8).token_ids

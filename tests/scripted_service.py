"""A Service whose answers are written in advance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adept_fast.engine.runtime import Runtime
from adept_fast.engine.sequence import FinishReason, Generation, GenerationEvent, Request, Timings
from adept_fast.server.service import Service

TOKEN = 340


def step(text: str, finish_reason: FinishReason | None = None) -> GenerationEvent:
    return GenerationEvent((TOKEN,), text, None, finish_reason)


class ScriptedAnswer:
    """Events, and errors that are raised in their place."""

    def __init__(self, request: Request, script: Sequence[GenerationEvent | Exception]) -> None:
        self.request = request
        self.is_cancelled = False
        self._script = list(script)
        self._events: list[GenerationEvent] = []

    def __aiter__(self) -> ScriptedAnswer:
        return self

    async def __anext__(self) -> GenerationEvent:
        if not self._script:
            raise StopAsyncIteration
        event = self._script.pop(0)
        if isinstance(event, Exception):
            raise event
        self._events.append(event)
        return event

    def cancel(self) -> None:
        self.is_cancelled = True

    def generation(self) -> Generation:
        timings = Timings(0, 0, 0, len(self.request.prompt_ids), 0, 0)
        text = "".join(event.text for event in self._events)
        ids = [TOKEN] * len(self._events)
        reason = self._events[-1].finish_reason if self._events else None
        return Generation(text, ids, reason or "interrupted", None, timings)


class ScriptedService(Service):
    """Gives each request the same script; an error in place of a script is raised by ``submit``."""

    def __init__(
        self, runtime: Runtime, script: Sequence[GenerationEvent | Exception] | Exception = ()
    ) -> None:
        super().__init__(runtime)
        self.script = script
        self.answers: list[Any] = []

    def submit(self, requests: Sequence[Request]) -> list[Any]:
        if isinstance(self.script, Exception):
            raise self.script
        self.answers = [ScriptedAnswer(request, self.script) for request in requests]
        return self.answers

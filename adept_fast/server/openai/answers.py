"""Answers: the choices of one HTTP request, which end when its client has gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Literal

from adept_fast.arguments import ParameterError
from adept_fast.engine.scheduler import QueueFullError
from adept_fast.engine.sequence import FinishReason, Generation, GenerationError, GenerationEvent, Request
from adept_fast.server.answering import AnswerService, PendingAnswer, ServiceStoppingError
from adept_fast.server.api_error import ApiError
from adept_fast.server.observation import observed


class Answers:
    """Answers that are generated side by side; what fails one of them fails all. Closing cancels them."""

    def __init__(self, answers: Sequence[PendingAnswer]) -> None:
        self._answers = answers

    @classmethod
    def submit(cls, service: AnswerService, requests: Sequence[Request]) -> Answers:
        """Queue requests, all or none. Raises ApiError."""
        try:
            return cls(service.submit(requests))
        except ParameterError as error:
            raise ApiError(400, str(error), "prompt", "invalid_value") from error
        except QueueFullError as error:
            seconds = error.retry_after_seconds
            raise ApiError(429, str(error), code="queue_full", retry_after_seconds=seconds) from error
        except ServiceStoppingError as error:
            raise ApiError(503, str(error), code="stopping") from error

    async def events(self) -> AsyncGenerator[tuple[int, GenerationEvent], None]:
        """The events of all, each with the index of its answer, as they come. Raises ApiError."""
        queue: asyncio.Queue[tuple[int, GenerationEvent | BaseException | None]] = asyncio.Queue()

        async def pass_on(index: int, answer: PendingAnswer) -> None:
            try:
                async with aclosing(observed(answer)) as observed_events:
                    async for event in observed_events:
                        queue.put_nowait((index, event))
            except Exception as error:  # noqa: BLE001 (raised by the one who reads the queue)
                queue.put_nowait((index, error))
            else:
                queue.put_nowait((index, None))

        tasks = [asyncio.create_task(pass_on(*entry)) for entry in enumerate(self._answers)]
        try:
            unfinished = len(tasks)
            while unfinished:
                index, event = await queue.get()
                if event is None:
                    unfinished -= 1
                elif isinstance(event, GenerationError):
                    raise ApiError(500, str(event), code="invalid_logits") from event
                elif isinstance(event, BaseException):
                    raise event
                else:
                    finish_reason_of(event.finish_reason)
                    yield index, event
        finally:
            self.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def generations(self) -> list[Generation]:
        """What was generated so far."""
        return [answer.generation() for answer in self._answers]

    def generation(self, index: int) -> Generation:
        return self._answers[index].generation()

    async def wait(self) -> list[Generation]:
        """All that is generated. Raises ApiError."""
        async for _ in self.events():
            pass
        return self.generations()

    def cancel(self) -> None:
        """End those that have not ended, which frees their slots at the next step."""
        for answer in self._answers:
            answer.cancel()


def finish_reason_of(reason: FinishReason | None) -> Literal["stop", "length"] | None:
    """OpenAI's word for it. Raises ApiError if the answer was cut off."""
    if reason == "timeout":
        raise ApiError(504, "the answer took longer than this server allows", code="timeout")
    if reason == "interrupted":
        raise ApiError(503, "the server is stopping, and ended the answer", code="stopping")
    return "stop" if reason == "eos" else reason

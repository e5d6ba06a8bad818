"""RemoteAnswer: the events of one request that a replica runs, or another one if that is lost."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from adept_fast.engine.sequence import (
    FinishReason,
    Generation,
    GenerationError,
    GenerationEvent,
    Request,
    Timings,
    TokenLogprob,
)
from adept_fast.integrations.ray_serve.messages import (
    Accepted,
    Finished,
    Message,
    Progress,
    Refused,
    RemoteRequest,
)
from adept_fast.integrations.ray_serve.replay import Replay
from adept_fast.server.exchange import current
from adept_fast.server.logs import log

MAX_LOST = 3  # replicas for one answer: a request that ends every replica must not end all of them


class RemoteAnswer(AsyncIterator[GenerationEvent]):
    """The events of one request, in order. One coroutine awaits them.

    A replica that fails, or whose machine is gone, is replaced by another one, which generates the same text
    from its beginning; what is known of it already is left out.

    Args:
        call: sends a request to a replica; returns Serve's generator of its messages.
        on_end: called once, when there will be no more events.
    """

    def __init__(
        self, call: Callable[[RemoteRequest], Any], request: Request, on_end: Callable[[RemoteAnswer], None]
    ) -> None:
        self._call, self._request, self._on_end = call, request, on_end
        self._events: deque[GenerationEvent] = deque()
        self._changed = asyncio.Event()
        self._replay = Replay()
        self._prompt_logprobs: list[TokenLogprob | None] | None = None
        self._timings: Timings | None = None
        self._reason: FinishReason | None = None
        self._error: Exception | None = None
        self._replica: str | None = None
        self._is_over = False  # and _error is known
        self.submitted_at = time.monotonic()
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._ended)
        self._timer: asyncio.TimerHandle | None = None
        if request.deadline is not None:
            delay = max(0.0, request.deadline - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._end, "timeout")

    async def __anext__(self) -> GenerationEvent:
        """Raises GenerationError if the logits hold a NaN, RuntimeError if too many replicas were lost."""
        while True:
            if self._events:
                return self._events.popleft()
            if self._error is not None:
                raise self._error
            if self._is_over:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()

    @property
    def is_finished(self) -> bool:
        """Whether all events are there; some may still be unread."""
        return self._is_over

    def cancel(self) -> None:
        """End the request, which frees its slot; the last event says ``interrupted``."""
        self._end("interrupted")

    def generation(self) -> Generation:
        """The result so far, complete once iteration has ended."""
        replay = self._replay
        unknown = Timings(0.0, 0.0, 0.0, len(self._request.prompt_ids), max(0, len(replay.token_ids) - 1), 0)
        return Generation(
            text=replay.text,
            token_ids=replay.token_ids,
            finish_reason=self._reason or "interrupted",
            logprobs=None if self._request.params.logprobs is None else replay.logprobs,
            timings=self._timings or unknown,
            prompt_logprobs=self._prompt_logprobs,
        )

    def _end(self, reason: FinishReason) -> None:
        if not self._is_over and self._reason is None:
            self._take(GenerationEvent((), "", None, reason))
            self._task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not task.cancelled():
            self._error = task.exception()  # type: ignore[assignment]
        self._is_over = True
        self._changed.set()
        self._on_end(self)

    async def _run(self) -> None:
        """Take the messages of a replica, and of others after it is lost, to the end."""
        lost: set[str] = set()
        failures = 0
        while True:
            try:
                await self._run_on_a_replica(frozenset(lost))
                return
            except GenerationError:
                raise
            except Exception as error:  # a lost machine is many kinds of error, and so is a replica's own
                if self._reason is not None:
                    return  # only the timings are missing
                failures += 1
                if self._replica is not None:
                    lost.add(self._replica)
                self._log_loss(error)
                if failures > MAX_LOST:
                    raise RuntimeError(f"{failures} replicas failed to answer the request") from error
                self._replay.restart()

    async def _run_on_a_replica(self, avoid: frozenset[str]) -> None:
        request, self._replica = self._request, None
        stream = self._call(
            RemoteRequest(
                request.prompt_ids, request.params, request.prompt_logprobs, request.cache_scope, avoid
            )
        )
        try:
            async for message in stream:
                self._receive(message)
        finally:
            stream.cancel()
        if self._timings is None:
            raise RuntimeError("the replica's messages ended before the answer")

    def _receive(self, message: Message) -> None:
        if isinstance(message, Accepted):
            self._replica = message.replica
        elif isinstance(message, Progress):
            if message.prompt_logprobs is not None:
                self._prompt_logprobs = message.prompt_logprobs
            for event in message.events:
                if (news := self._replay.news(event)) is not None:
                    self._take(news)
        elif isinstance(message, Finished):
            self._timings = message.timings
        elif isinstance(message, Refused):
            raise GenerationError(message.message)

    def _take(self, event: GenerationEvent) -> None:
        self._reason = event.finish_reason
        self._events.append(event)
        self._changed.set()

    def _log_loss(self, error: Exception) -> None:
        exchange = current.get()
        log(
            "an answer goes on at another replica",
            logging.WARNING,
            request_id=None if exchange is None else exchange.request_id,
            replica=self._replica,
            error=type(error).__name__,
            known_tokens=len(self._replay.token_ids),
        )

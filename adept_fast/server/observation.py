"""Observation of answers: what the log and the metrics have of each, from its events as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from adept_fast.engine.sequence import GenerationEvent
from adept_fast.server.answering import PendingAnswer
from adept_fast.server.exchange import Exchange, current

CANCELLED, ERROR = "cancelled", "error"  # beside the finish reasons


async def observed(answer: PendingAnswer) -> AsyncGenerator[GenerationEvent, None]:
    """The events of an answer, which are timed on their way. Raises what the answer raises."""
    exchange = current.get()
    if exchange is None:
        async for event in answer:
            yield event
        return
    clock = _Clock(exchange)
    reason: str | None = None
    try:
        async for event in answer:
            clock.tick(len(event.token_ids))
            reason = event.finish_reason
            yield event
    except (asyncio.CancelledError, GeneratorExit):
        reason = reason or CANCELLED
        raise
    except Exception:
        reason = ERROR
        raise
    finally:
        _add(exchange, answer, clock, reason or CANCELLED)


class _Clock:
    """Times the tokens of an answer."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.first_token_seconds: float | None = None
        self._last_seconds = 0.0

    def tick(self, tokens: int) -> None:
        """That many tokens came."""
        if not tokens:
            return
        seconds = self._exchange.seconds()
        if self.first_token_seconds is None:
            self.first_token_seconds = seconds
            self._exchange.metrics.first_token(seconds)
        else:
            self._exchange.metrics.tokens(tokens, seconds - self._last_seconds)
        self._last_seconds = seconds


def _add(exchange: Exchange, answer: PendingAnswer, clock: _Clock, reason: str) -> None:
    """Count an answer that has ended."""
    generation = answer.generation()
    timings, count = generation.timings, len(generation.token_ids)
    if clock.first_token_seconds is not None:
        # All before the prompt was read.
        exchange.metrics.queued(max(0.0, clock.first_token_seconds - timings.prefill_seconds))
    exchange.metrics.ended(
        reason,
        exchange.seconds(),
        prompt_tokens=timings.prompt_tokens,
        cached_tokens=timings.cached_tokens,
        generated_tokens=count,
    )
    totals = exchange.totals
    totals.prompt_tokens += timings.prompt_tokens
    totals.cached_tokens += timings.cached_tokens
    totals.completion_tokens += count
    totals.finish_reasons.append(reason)
    if totals.first_token_seconds is None:
        totals.first_token_seconds = clock.first_token_seconds
    if exchange.has_texts:
        totals.texts.append(generation.text)

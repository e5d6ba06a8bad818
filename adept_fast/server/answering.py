"""AnswerService: what the routes need of whatever runs their requests, here or on other machines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from adept_fast.engine.sequence import Generation, GenerationEvent, Request
from adept_fast.tokenizer.tokenizer import Tokenizer


class ServiceStoppingError(RuntimeError):
    """No request is admitted any more."""


@dataclass(frozen=True)
class Load:
    """How much there is to do now."""

    slots: int
    running: int  # requests that have a slot
    waiting: int  # requests in the queue


class ServedModel(Protocol):
    """The model as requests see it."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def max_seq_len(self) -> int:
        """Tokens of a prompt and its answer together."""
        ...


@dataclass(frozen=True)
class ModelDescription:
    """A ServedModel that is on another machine."""

    tokenizer: Tokenizer
    max_seq_len: int


class PendingAnswer(Protocol):
    """The events of one request, in order. One coroutine awaits them."""

    def __aiter__(self) -> AsyncIterator[GenerationEvent]: ...

    async def __anext__(self) -> GenerationEvent:
        """Raises GenerationError if the logits hold a NaN, RuntimeError if nothing can go on with it."""
        ...

    def cancel(self) -> None:
        """End the request as soon as possible; the last event says ``interrupted``."""
        ...

    def generation(self) -> Generation:
        """The result so far, complete once iteration has ended."""
        ...


class AnswerService(Protocol):
    """Runs requests for coroutines of one event loop."""

    @property
    def model(self) -> ServedModel: ...

    @property
    def failure(self) -> BaseException | None:
        """Why no request can be run any more."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether requests are admitted."""
        ...

    def submit(self, requests: Sequence[Request]) -> Sequence[PendingAnswer]:
        """Queue all requests, or none.

        Raises ParameterError for a prompt, QueueFullError, and ServiceStoppingError.
        """
        ...

    def load(self) -> Load: ...

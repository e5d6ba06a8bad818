"""Messages between the ingress and the replicas."""

from __future__ import annotations

from dataclasses import dataclass

from adept_fast.engine.sequence import GenerationEvent, Timings, TokenLogprob
from adept_fast.sampling import SamplingParams


@dataclass(frozen=True)
class RemoteRequest:
    """One answer to one prompt. Its parameters have a seed, so that every replica gives the same.

    Attributes:
        avoid: the replicas that failed to answer it.
    """

    prompt_ids: list[int]
    params: SamplingParams
    prompt_logprobs: int | None
    cache_scope: str
    avoid: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Accepted:
    """The first message of an answer: the replica that has it."""

    replica: str


@dataclass(frozen=True)
class Progress:
    """The events since the last message. ``prompt_logprobs`` come with the first ones, if at all."""

    events: list[GenerationEvent]
    prompt_logprobs: list[TokenLogprob | None] | None


@dataclass(frozen=True)
class Finished:
    """The last message of an answer."""

    timings: Timings


@dataclass(frozen=True)
class Refused:
    """The last message of an answer that fails on every replica alike."""

    message: str


Message = Accepted | Progress | Finished | Refused

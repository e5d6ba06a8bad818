"""Usage: the tokens of a request, as its response reports them."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, Field

from adept_fast.engine.sequence import Generation


class PromptTokensDetails(BaseModel):
    """Which of the prompt's tokens took no time."""

    cached_tokens: int = Field(description="Tokens whose keys and values were in the prefix cache.")


class Usage(BaseModel):
    """Tokens of a request; each prompt counts once, whatever `n` is."""

    prompt_tokens: int
    completion_tokens: int = Field(description="Of all choices, without the tokens that ended them.")
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


def usage_of(generations: Sequence[Generation], choices: int) -> Usage:
    """The usage of answers in the order of their prompts, ``choices`` to each."""
    firsts = [generation.timings for generation in generations[::choices]]
    prompt_tokens = sum(timings.prompt_tokens for timings in firsts)
    completion_tokens = sum(len(generation.token_ids) for generation in generations)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(t.cached_tokens for t in firsts)),
    )

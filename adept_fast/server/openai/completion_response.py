"""The responses of ``/v1/completions``."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from adept_fast.server.openai.usage import Usage


class CompletionLogprobs(BaseModel):
    """Of each token, in order; null for a first token, which follows nothing."""

    tokens: list[str] = Field(description="`bytes:\\xe2` stands for a part of a character.")
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None = Field(description="null if `logprobs` is 0.")
    text_offset: list[int] = Field(description="The character of `text` at which each token begins.")


class CompletionChoice(BaseModel):
    """One continuation of one prompt, or the part of it that became known in a step."""

    index: int = Field(description="Those of the first prompt come first.")
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None = Field(description="null in all but the last event.")


class Completion(BaseModel):
    """The continuations of all prompts; with `stream`, the data of each event."""

    id: str
    object: Literal["text_completion"]
    created: int = Field(description="Seconds since 1970.")
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = Field(
        None, description="In a stream only with `include_usage`, and then only in the last event."
    )

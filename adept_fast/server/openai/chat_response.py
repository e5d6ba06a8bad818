"""The responses of ``/v1/chat/completions``."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from adept_fast.server.openai.usage import Usage


class TopLogprob(BaseModel):
    """A token that was likely at a position."""

    token: str
    logprob: float
    bytes: list[int] = Field(description="Of a part of a character, too.")


class ChatTokenLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob] = Field(description="The likeliest tokens at its position, best first.")


class ChatLogprobs(BaseModel):
    """Of each token of an answer, in order."""

    content: list[ChatTokenLogprob]
    refusal: None


class AnswerMessage(BaseModel):
    """What the model wrote."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """All answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int = Field(description="Seconds since 1970.")
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(BaseModel):
    """The part of an answer that became known in a step."""

    role: Literal["assistant"] = Field(
        default="assistant", description="In the first event of a choice only."
    )
    content: str = ""


class ChunkChoice(BaseModel):
    """The progress of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"] | None = Field(description="null in all but the last event.")


class ChatChunk(BaseModel):
    """With `stream`, the data of each event."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int = Field(description="Seconds since 1970.")
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = Field(
        None, description="Only with `include_usage`, and then only in the last event."
    )

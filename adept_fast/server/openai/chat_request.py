"""ChatRequest: the body of ``/v1/chat/completions``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from adept_fast.server.openai.body import READ_WHOLE, Body
from adept_fast.server.openai.sampling_fields import SamplingFields, bounds, invalid
from adept_fast.server.settings import Settings
from adept_fast.system.short_text import short_repr


class TextPart(Body):
    """A part of a message."""

    unsupported = {"prompt_cache_breakpoint": []}
    type: Literal["text"]
    text: str


_AtLeastOne = Annotated[int, Field(ge=1, le=2**31 - 1), READ_WHOLE]
Content = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[TextPart], Field(fail_fast=True), Tag("<parts>")],
    Discriminator(lambda value: "<parts>" if isinstance(value, list) else "<text>"),
]


class Message(Body):
    """What one side of a conversation wrote. Answers may be sent back as they came."""

    unsupported = {
        "annotations": [[]],
        "audio": [],
        "function_call": [],
        "refusal": [],
        "tool_call_id": [],
        "tool_calls": [[]],
    }
    role: Literal["system", "developer", "user", "assistant"] = Field(
        description="`developer` stands for `system`; not every chat format has one."
    )
    content: Content = Field(description="Text, or a list of parts, which are joined.")
    name: str | None = Field(None, description="For chat templates that read it.")

    def as_template_reads_it(self) -> dict[str, str]:
        """The message with OpenAI's other name for a role, and its parts, resolved."""
        text = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": text, **({} if self.name is None else {"name": self.name})}


class ChatRequest(SamplingFields):
    """A conversation, which is answered ``n`` times."""

    unsupported = {
        "audio": [],
        "function_call": ["none", "auto"],
        "functions": [[]],
        "metadata": [{}],
        "modalities": [["text"]],
        "moderation": [],
        "parallel_tool_calls": [True, False],
        "prediction": [],
        "prompt_cache_key": [],
        "prompt_cache_options": [],
        "prompt_cache_retention": [],
        "reasoning_effort": ["none"],
        "response_format": [{"type": "text"}],
        "safety_identifier": [],
        "service_tier": ["auto", "default"],
        "store": [False],
        "tool_choice": ["none", "auto"],
        "tools": [[]],
        "verbosity": ["medium"],
        "web_search_options": [],
    }
    messages: Annotated[list[Message], Field(fail_fast=True)] = Field(min_length=1)
    max_completion_tokens: _AtLeastOne | None = Field(
        None, description="By default, until the context is full."
    )
    max_tokens: _AtLeastOne | None = Field(None, description="The older name of `max_completion_tokens`.")
    logprobs: bool = Field(False, description="Report the log-probability of each token.")
    top_logprobs: Annotated[int, Field(ge=0), READ_WHOLE] | None = Field(
        None, description="And those of this many of the likeliest tokens; only with `logprobs`."
    )

    @property
    def max_new_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def check(self, settings: Settings) -> None:
        super().check(settings)
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise invalid(
                "max_tokens",
                f"is {short_repr(self.max_tokens)}, and max_completion_tokens {self.max_completion_tokens}; "
                f"expected one of them, or the same value",
            )
        if self.top_logprobs is None:
            return
        if not self.logprobs:
            raise invalid("top_logprobs", "is given without logprobs; expected logprobs to be true")
        if self.top_logprobs > settings.max_logprobs:
            raise invalid(
                "top_logprobs",
                f"is {short_repr(self.top_logprobs)}; expected at most {settings.max_logprobs}",
            )


def chat_bounds(settings: Settings) -> dict[str, dict[str, Any]]:
    """What the settings allow, for the OpenAPI document."""
    return {**bounds(settings), "top_logprobs": {"maximum": settings.max_logprobs}}

"""CompletionRequest: the body of ``/v1/completions``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from adept_fast.server.openai.body import READ_WHOLE, Whole, WholeNumbers
from adept_fast.server.openai.sampling_fields import SamplingFields, bounds, invalid
from adept_fast.server.settings import Settings
from adept_fast.system.short_text import short_repr


def _kind(value: object) -> str:
    if not isinstance(value, list):
        return "<text>"
    if value and isinstance(value[0], str):
        return "<texts>"
    return "<id lists>" if value and isinstance(value[0], list) else "<ids>"


Prompt = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[str], Field(fail_fast=True, min_length=1), Tag("<texts>")]
    | Annotated[WholeNumbers, Field(min_length=1), Tag("<ids>")]
    | Annotated[list[WholeNumbers], Field(fail_fast=True, min_length=1), Tag("<id lists>")],
    Discriminator(_kind),
]


class CompletionRequest(SamplingFields):
    """Prompts, each of which is continued ``n`` times."""

    unsupported = {"suffix": [""]}
    prompt: Prompt = Field(description="Text or token ids, or a list of either; without any, BOS stands.")
    max_tokens: Whole = Field(16, ge=0, le=2**31 - 1, description="0 to score prompts, with `echo`.")
    logprobs: Annotated[int, Field(ge=0), READ_WHOLE] | None = Field(
        None, description="Log-probabilities of the tokens, and of this many of the likeliest ones."
    )
    echo: bool = Field(False, description="Begin each text with its prompt.")
    best_of: Annotated[int, Field(ge=1), READ_WHOLE] | None = Field(
        None, description="Only the value of `n`."
    )

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        return list(self.prompt) if not isinstance(self.prompt[0], int) else [self.prompt]

    def check(self, settings: Settings) -> None:
        super().check(settings)
        if len(self.prompts) > settings.max_prompts:
            raise invalid(
                "prompt", f"has {len(self.prompts)} prompts; expected at most {settings.max_prompts}"
            )
        if self.best_of not in (None, self.n):
            raise invalid(
                "best_of", f"is {short_repr(self.best_of)}; expected the value of n, {short_repr(self.n)}"
            )
        if self.logprobs is not None and self.logprobs > settings.max_logprobs:
            raise invalid(
                "logprobs", f"is {short_repr(self.logprobs)}; expected at most {settings.max_logprobs}"
            )


def completion_bounds(settings: Settings, vocab_size: int) -> dict[str, dict[str, Any]]:
    """What the settings and the vocabulary allow, for the OpenAPI document."""
    ids = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": vocab_size - 1}}
    several = {"type": "array", "minItems": 1, "maxItems": settings.max_prompts}
    text = {"type": "string"}
    prompts = [text, {**several, "items": text}, {**ids, "minItems": 1}, {**several, "items": ids}]
    return {
        **bounds(settings),
        "best_of": {"maximum": settings.max_choices},
        "logprobs": {"maximum": settings.max_logprobs},
        "prompt": {"oneOf": prompts},
    }

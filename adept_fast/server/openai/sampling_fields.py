"""SamplingFields: the parameters of completions and of chat completions alike."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema

from adept_fast.arguments import ParameterError
from adept_fast.sampling import SamplingParams
from adept_fast.server.api_error import ApiError
from adept_fast.server.openai.body import READ_WHOLE, Body, Whole
from adept_fast.server.openai.models import check_model
from adept_fast.server.settings import Settings
from adept_fast.system.short_text import short_repr

_MAX_BIASES = 1024
_SEEDS = 2**63
_STEP = 0x9E3779B97F4A7C15  # odd, so that the seeds of choices differ; far from seeds that users choose

Stop = Annotated[
    Annotated[str, Tag("<one>")] | Annotated[list[str], Field(fail_fast=True), Tag("<list>")],
    Discriminator(lambda value: "<list>" if isinstance(value, list) else "<one>"),
]


def _biases(value: object) -> object:
    """Token id → bias. Object keys are text in JSON."""
    if not isinstance(value, dict):
        return value
    if len(value) > _MAX_BIASES:
        raise ValueError(f"has {len(value)} tokens; expected at most {_MAX_BIASES}")
    biases = {}
    for key, bias in value.items():
        if not (key.isascii() and key.isdecimal() and len(key) <= 10):
            raise ValueError(f"has the key {short_repr(key)}; expected token ids")
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
            raise ValueError(f"has {short_repr(bias)} for token {key}; expected a number from -100 to 100")
        biases[int(key)] = float(bias)
    return biases


LogitBias = Annotated[
    dict[int, float],
    BeforeValidator(_biases),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,10}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            "maxProperties": _MAX_BIASES,
        }
    ),
]
Seed = Annotated[int, Field(ge=-_SEEDS, lt=_SEEDS), READ_WHOLE]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1), READ_WHOLE]
Temperature = Annotated[
    float,
    Field(ge=0, le=2),
    WithJsonSchema(
        {"anyOf": [{"const": 0}, {"type": "number", "minimum": 1e-20, "maximum": 2}]},
    ),
]


class StreamOptions(Body):
    """How a stream ends."""

    unsupported = {"include_obfuscation": [False]}
    include_usage: bool = Field(False, description="A last event has the `usage` of all choices.")


class SamplingFields(Body):
    """How prompts are continued, and how answers are sent."""

    model: str | None = Field(None, description="The id of the served model; may be omitted.")
    n: Whole = Field(1, ge=1, description="Answers to each prompt.")
    stream: bool = Field(False, description="Send server-sent events, one for each step, then `[DONE]`.")
    stream_options: StreamOptions | None = Field(None, description="Only with `stream`.")
    temperature: Temperature = Field(1.0, description="0 for the likeliest token; else 1e-20 to 2.")
    top_p: float = Field(1.0, gt=0, le=1, description="Draw among the fewest tokens of this probability.")
    top_k: Whole = Field(0, ge=0, le=2**31 - 1, description="Draw among the k likeliest; 0 for all.")
    min_p: float = Field(
        0.0, ge=0, lt=1, description="Draw among tokens of at least this share of the largest probability."
    )
    frequency_penalty: float = Field(
        0.0, ge=-2, le=2, description="Subtracted from a token's logit for each time it was generated."
    )
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, description="Subtracted from a token's logit if it was generated."
    )
    repetition_penalty: float = Field(
        1.0, ge=1e-10, le=1e10, description="Above 1 makes tokens of the prompt and the text less likely."
    )
    logit_bias: LogitBias = Field({}, description="Token id → a number added to its logit.")
    seed: Seed | None = Field(
        None, description="The same seed gives the same answers; the first choice is that of `n` 1."
    )
    stop: Stop = Field([], description="Text that ends an answer, and is no part of it; or a list of such.")
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True)] = Field(
        [], max_length=128, description="Tokens that end an answer, and are no part of it."
    )
    ignore_eos: bool = Field(False, description="Go on past the end token.")
    add_bos: bool | None = Field(None, description="Put BOS before text; null as the checkpoint says.")
    user: str | None = Field(None, description="Accepted, and not used.")

    @property
    def includes_usage(self) -> bool:
        """Whether a last event reports usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def check(self, settings: Settings) -> None:
        """Raises ApiError for what the server's settings, or other parameters, do not allow."""
        check_model(self.model, settings)
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options", "is given without stream; expected stream to be true")
        if self.n > settings.max_choices:
            raise invalid("n", f"is {short_repr(self.n)}; expected at most {settings.max_choices}")
        if len(self.stops) > settings.max_stops:
            raise invalid("stop", f"has {len(self.stops)} strings; expected at most {settings.max_stops}")
        for stop in self.stops:
            if not 0 < len(stop) <= settings.max_stop_characters:
                raise invalid(
                    "stop",
                    f"has a string of {len(stop)} characters; expected 1 to {settings.max_stop_characters}",
                )

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop

    def params(
        self, max_new_tokens: int | None, logprobs: int | None, more_stops: tuple[str, ...] = ()
    ) -> list[SamplingParams]:
        """The settings of each choice. The first has the seed itself, the others seeds derived from it."""
        seeds: list[int | None] = [
            None if self.seed is None else (self.seed + choice * _STEP) % _SEEDS for choice in range(self.n)
        ]
        try:
            return [
                SamplingParams(
                    max_new_tokens=max_new_tokens,
                    temperature=self.temperature,
                    top_k=self.top_k,
                    top_p=self.top_p,
                    min_p=self.min_p,
                    repetition_penalty=self.repetition_penalty,
                    frequency_penalty=self.frequency_penalty,
                    presence_penalty=self.presence_penalty,
                    logit_bias=self.logit_bias,
                    stop=(*self.stops, *more_stops),
                    stop_token_ids=tuple(self.stop_token_ids),
                    seed=seed,
                    logprobs=logprobs,
                    ignore_eos=self.ignore_eos,
                )
                for seed in seeds
            ]
        except ParameterError as error:  # its message begins with the parameter's name
            raise ApiError(400, str(error), str(error).split(maxsplit=1)[0], "invalid_value") from error


def bounds(settings: Settings) -> dict[str, dict[str, Any]]:
    """What the settings allow, for the OpenAPI document."""
    length = {"minLength": 1, "maxLength": settings.max_stop_characters}
    stops = {"type": "array", "items": {"type": "string", **length}, "maxItems": settings.max_stops}
    return {
        "model": {"enum": [settings.model_name, None]},
        "n": {"maximum": settings.max_choices},
        "stop": {"anyOf": [{"type": "string", **length}, stops, {"type": "null"}]},
    }


def invalid(name: str, message: str) -> ApiError:
    """A value that is refused; ``message`` goes on after the parameter's name."""
    return ApiError(400, f"{name} {message}", name, "invalid_value")

"""PlainLine: a line with a prompt and fields of SamplingParams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from adept_fast.arguments import ParameterError, optional_flag, token_ids
from adept_fast.engine.runtime import Runtime
from adept_fast.engine.sequence import Generation, Request
from adept_fast.sampling import SamplingParams
from adept_fast.server.batch.answer import plain_answer, plain_failure
from adept_fast.server.batch.line import Line
from adept_fast.server.batch.line_error import LineError
from adept_fast.server.batch.line_task import LineTask
from adept_fast.server.batch.origin import BatchOrigin
from adept_fast.server.prompt_length import max_characters
from adept_fast.server.settings import Settings
from adept_fast.system.short_text import short_repr, shortened
from adept_fast.tokenizer.tokenizer import TokenizerError

_SAMPLING = tuple(field.name for field in fields(SamplingParams))
_FIELDS = ("custom_id", "prompt", "add_bos", *_SAMPLING)


class PlainLine(LineTask):
    """A prompt that is continued as ``Runtime.generate`` continues it. Raises LineError."""

    def __init__(self, line: Line, runtime: Runtime, settings: Settings, origin: BatchOrigin) -> None:
        self._number, self._custom_id, self._origin = line.number, line.custom_id, origin
        for name in line.values:
            if name not in _FIELDS:
                message = f"{shortened(name)} is no field of a line; expected {', '.join(_FIELDS)}"
                raise LineError(message, shortened(name), "unknown_parameter")
        if line.values.get("prompt") is None:
            raise LineError("prompt is missing", "prompt", "missing_required_parameter")
        params = _params(line.values, settings, origin.seed_of(line.number, line.custom_id))
        self._request = Request(_prompt_ids(line.values, runtime), params)

    @property
    def requests(self) -> Sequence[Request]:
        return (self._request,)

    def answer(self, generations: Sequence[Generation]) -> bytes:
        (generation,) = generations
        answer: dict[str, Any] = {
            "text": generation.text,
            "token_ids": generation.token_ids,
            "finish_reason": generation.finish_reason,
            "prompt_tokens": generation.timings.prompt_tokens,
            "completion_tokens": len(generation.token_ids),
        }
        if generation.logprobs is not None:
            answer["logprobs"] = [
                {"token_id": entry.token_id, "logprob": entry.logprob, "top": entry.top}
                for entry in generation.logprobs
            ]
        return plain_answer(self._origin, self._number, self._custom_id, answer)

    def failure(self, error: LineError) -> bytes:
        return plain_failure(self._origin, self._number, self._custom_id, error)


def _params(given: dict[str, Any], settings: Settings, seed: int) -> SamplingParams:
    chosen = {name: given[name] for name in _SAMPLING if name in given}
    if chosen.get("seed") is None:
        chosen["seed"] = seed
    if "logit_bias" in chosen:
        chosen["logit_bias"] = _biases(chosen["logit_bias"])
    try:
        params = SamplingParams(**chosen)
    except ParameterError as error:  # its message begins with the parameter's name
        raise LineError(str(error), str(error).split(maxsplit=1)[0].rstrip(":")) from error
    if (params.logprobs or 0) > settings.max_logprobs:
        raise LineError(
            f"logprobs is {params.logprobs}; expected at most {settings.max_logprobs}", "logprobs"
        )
    if len(params.stop) > settings.max_stops:
        raise LineError(f"stop has {len(params.stop)} strings; expected at most {settings.max_stops}", "stop")
    longest = max(map(len, params.stop), default=0)
    if longest > settings.max_stop_characters:
        raise LineError(
            f"stop has a string of {longest} characters; expected at most {settings.max_stop_characters}",
            "stop",
        )
    return params


def _biases(value: object) -> list[tuple[int, Any]]:
    """Token id and bias of each entry. Keys of objects are text in JSON."""
    expected = "an object of token ids and numbers"
    if not isinstance(value, dict):
        raise LineError(f"logit_bias is {short_repr(value)}; expected {expected}", "logit_bias")
    for key in value:
        if not (key.isascii() and key.isdecimal() and len(key) <= 10):
            raise LineError(f"logit_bias has the key {short_repr(key)}; expected {expected}", "logit_bias")
    return [(int(key), bias) for key, bias in value.items()]


def _prompt_ids(given: dict[str, Any], runtime: Runtime) -> list[int]:
    prompt, tokenizer = given["prompt"], runtime.tokenizer
    if isinstance(prompt, str) and len(prompt) > max_characters(runtime):
        raise _too_long(f"{len(prompt)} characters", f"{max_characters(runtime)}", runtime)
    try:
        add_bos = optional_flag("add_bos", given.get("add_bos"))
        if isinstance(prompt, str):
            ids = tokenizer.encode(prompt, add_bos=add_bos)
        else:
            ids = token_ids("prompt", prompt, "text or token ids")
        ids = ids or tokenizer.encode("", add_bos=True)
        if len(ids) > runtime.max_seq_len:
            raise _too_long(f"{len(ids)} tokens", f"{runtime.max_seq_len}", runtime)
        runtime.engine.check_prompt(ids)
    except TokenizerError as error:
        raise LineError(f"prompt: {error}", "prompt") from error
    except ParameterError as error:
        raise LineError(str(error), str(error).split(maxsplit=1)[0]) from error
    return ids


def _too_long(found: str, limit: str, runtime: Runtime) -> LineError:
    context = f"for the context of {runtime.max_seq_len} tokens"
    return LineError(
        f"prompt has {found}; expected at most {limit}, {context}", "prompt", "context_length_exceeded"
    )

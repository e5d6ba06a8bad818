"""lm-eval's generation settings as SamplingParams."""

from __future__ import annotations

from typing import Any

from adept_fast.arguments import ParameterError
from adept_fast.sampling import SamplingParams

DEFAULT_NEW_TOKENS = 256  # where a task says nothing, as for lm-eval's own models
# What tasks written for one backend or another call the number of new tokens; the first one given counts.
_NEW_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


def generation_params(settings: dict[str, Any], max_length: int, place: int = 0) -> SamplingParams:
    """What a task's ``generation_kwargs`` ask for.

    Greedy unless ``do_sample`` is true or, where it is not given, ``temperature`` is above 0. Draws depend on
    the seed alone, so ``place``, the request's among all, is added to it: repeats of one prompt differ.

    Raises ParameterError for a setting that is unknown, or that leaves no room for a prompt.
    """
    known = ("until", "do_sample", *_NEW_TOKENS, *_SAMPLING)
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise ParameterError(f"generation_kwargs has {unknown[0]!r}; expected {', '.join(known)}")
    until = settings.get("until") or []
    counts = [settings[name] for name in _NEW_TOKENS if settings.get(name) is not None]
    new_tokens = int(counts[0]) if counts else DEFAULT_NEW_TOKENS
    if new_tokens >= max_length:
        raise ParameterError(
            f"max_gen_toks is {new_tokens}; expected less than max_length {max_length}, so that a prompt fits"
        )
    sampling = {name: settings[name] for name in _SAMPLING if settings.get(name) is not None}
    temperature = float(sampling.pop("temperature", 0.0))
    sampled = settings.get("do_sample")
    if sampled is None:
        sampled = temperature > 0
    if sampled and not temperature:
        temperature = 1.0  # as transformers has it
    sampling["seed"] = int(sampling.get("seed", 0)) + place
    return SamplingParams(
        max_new_tokens=new_tokens,
        stop=tuple([until] if isinstance(until, str) else filter(None, until)),
        temperature=temperature if sampled else 0.0,
        **sampling,
    )

"""lm-eval's generation settings as SamplingParams."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from adept_fast.arguments import ParameterError, entries, flag, integer
from adept_fast.sampling import SamplingParams
from adept_fast.system.short_text import short_repr

DEFAULT_NEW_TOKENS = 256  # if a task sets nothing, as for lm-eval's own models
# Names of the number of new tokens in tasks for different backends; the first given one counts.
_NEW_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_PENALTIES = ("repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias")
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", *_PENALTIES, "seed")


# Settings of transformers' generate with their default values, which have no effect.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences", "length_penalty"), (1,)),
    **dict.fromkeys(("encoder_repetition_penalty", "typical_p", "guidance_scale"), (1,)),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "penalty_alpha"), (0,)),
    **dict.fromkeys(("diversity_penalty", "epsilon_cutoff", "eta_cutoff"), (0,)),
    **dict.fromkeys(("min_length", "min_new_tokens"), (0,)),
    **dict.fromkeys(("bad_words_ids", "force_words_ids", "suppress_tokens", "begin_suppress_tokens"), ()),
    **dict.fromkeys(("sequence_bias", "exponential_decay_length_penalty"), ()),
    **dict.fromkeys(("early_stopping", "remove_invalid_values"), (False,)),
    "renormalize_logits": (True, False),  # scales the distribution
    "use_cache": (True, False),  # concerns only speed
}


def generation_params(settings: dict[str, Any], max_length: int, index: int = 0) -> SamplingParams:
    """The parameters of a task's ``generation_kwargs``.

    Greedy unless ``do_sample`` is true or, if it is not given, ``temperature`` is above 0. The index of the
    request is added to the seed, so that repeats of a prompt differ. None means not given.

    Raises ParameterError for an unknown or unsupported setting, or one that leaves no room for a prompt.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    _check_names(settings)
    _check_neutral(given)
    names = [name for name in _NEW_TOKENS if name in given]
    new_tokens = _whole(names[0], given[names[0]]) if names else DEFAULT_NEW_TOKENS
    if new_tokens >= max_length:
        raise ParameterError(
            f"max_gen_toks is {short_repr(new_tokens)}; expected less than max_length {max_length}, "
            f"so that a prompt fits"
        )
    sampling = {name: given[name] for name in _SAMPLING if name in given}
    temperature = sampling.pop("temperature", 0.0)
    sampled = flag("do_sample", given["do_sample"]) if "do_sample" in given else None
    params = SamplingParams(
        max_new_tokens=new_tokens,
        stop=_stops(given.get("until", ())),
        temperature=_number("temperature", temperature),
        **sampling | {"seed": _whole("seed", sampling.get("seed", 0)) + index},
    )
    if sampled is False:
        return replace(params, temperature=0.0)
    # As in transformers.
    return replace(params, temperature=1.0) if sampled and not params.temperature else params


def _check_names(settings: dict[str, Any]) -> None:
    known = ("until", "do_sample", *_NEW_TOKENS, *_SAMPLING)
    for name in settings:
        if name not in known and name not in _NEUTRAL:
            raise ParameterError(f"generation_kwargs has {short_repr(name)}; expected {', '.join(known)}")


def _check_neutral(given: dict[str, Any]) -> None:
    for name, allowed in _NEUTRAL.items():
        value = given.get(name)
        # Bools and numbers differ here, although 1 equals True in Python.
        alike = [one for one in allowed if isinstance(one, bool) == isinstance(value, bool)]
        if name in given and not (isinstance(value, (bool, int, float)) and value in alike):
            expected = " or ".join(map(str, allowed)) or "None"
            raise ParameterError(
                f"generation_kwargs has {name} {short_repr(value)}; expected {expected}, "
                "which the runtime supports"
            )


def _whole(name: str, value: Any) -> int:
    """An integer, also from text as of a command line."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return integer(name, value, 0)


def _number(name: str, value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ParameterError(f"{name} is {short_repr(value)}; expected a number") from error


def _stops(until: Any) -> tuple[str, ...]:
    """The strings of a task that are not empty."""
    texts = [until] if isinstance(until, str) else entries("until", until, "a string, or a list of strings")
    return tuple(text for text in texts if text != "")

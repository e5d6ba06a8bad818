"""lm-eval's generation settings as SamplingParams."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from adept_fast.arguments import ParameterError, entries, flag, integer
from adept_fast.sampling import SamplingParams
from adept_fast.system.short_text import short_repr

DEFAULT_NEW_TOKENS = 256  # if a task sets nothing, as for lm-eval's own models
# What tasks written for one backend or another call the number of new tokens; the first one given counts.
_NEW_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


# Settings of transformers' generate that change nothing while they have these values, its defaults.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "diversity_penalty": (0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "bad_words_ids": (),
    "force_words_ids": (),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "sequence_bias": (),
    "exponential_decay_length_penalty": (),
    "penalty_alpha": (0,),
    "guidance_scale": (1,),
    "remove_invalid_values": (False,),
    "renormalize_logits": (True, False),  # scales what is drawn from
    "use_cache": (True, False),  # is about speed alone
}


def generation_params(settings: dict[str, Any], max_length: int, index: int = 0) -> SamplingParams:
    """The parameters of a task's ``generation_kwargs``.

    Greedy unless ``do_sample`` is true or, where it is not given, ``temperature`` is above 0. Draws depend on
    the seed alone, so ``index``, of the request among all, is added to it: repeats of one prompt differ.
    A setting that is None is not given.

    Raises ParameterError for a setting that is unknown, that would change what the runtime does not, or that
    leaves no room for a prompt.
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
    # As transformers has it.
    return replace(params, temperature=1.0) if sampled and not params.temperature else params


def _check_names(settings: dict[str, Any]) -> None:
    known = ("until", "do_sample", *_NEW_TOKENS, *_SAMPLING)
    for name in settings:
        if name not in known and name not in _NEUTRAL:
            raise ParameterError(f"generation_kwargs has {short_repr(name)}; expected {', '.join(known)}")


def _check_neutral(given: dict[str, Any]) -> None:
    for name, allowed in _NEUTRAL.items():
        value = given.get(name)
        # A number is no bool here, although Python holds 1 to be equal to True.
        alike = [one for one in allowed if isinstance(one, bool) == isinstance(value, bool)]
        if name in given and not (isinstance(value, (bool, int, float)) and value in alike):
            expected = " or ".join(map(str, allowed)) or "None"
            raise ParameterError(
                f"generation_kwargs has {name} {short_repr(value)}; expected {expected}, "
                "all that the runtime does"
            )


def _whole(name: str, value: Any) -> int:
    """A command line's settings may be text."""
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
    """Those that are not empty: tasks have others too."""
    texts = [until] if isinstance(until, str) else entries("until", until, "a string, or a list of strings")
    return tuple(text for text in texts if text != "")

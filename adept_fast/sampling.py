"""SamplingParams, and the sampler that holds them on the device, a row for each slot."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adept_fast import choices, ops
from adept_fast.arguments import ParameterError, entries, flag, integer, number, token_ids
from adept_fast.ops.transfer import to_device
from adept_fast.system.short_text import short_repr

_LARGEST_SEED = 2**63 - 1
MAX_DRAFTS = choices.MAX_DRAFTS
MAX_LOGPROBS = 1000  # of the likeliest tokens at a position
MAX_BIASES = 1024  # entries of logit_bias

# A slot's numbers with the values that have no effect, in the order of ``ops.slot_sampler``'s arguments.
_NEUTRAL: dict[str, float] = {
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
}
_COUNTING = "frequency_penalty", "presence_penalty"  # settings that depend on the counts of tokens

# Every setting that ``Sampler`` may leave out, with the value that has no effect.
_UNUSED: dict[str, object] = {**_NEUTRAL, "logit_bias": ()}

# Within these ranges a logit stays in the range of float32, even if both settings apply.
_TEMPERATURES = 1e-20, 1e20
_PENALTIES = 1e-10, 1e10

_NUMBERS: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (
        lambda value: value == 0 or _TEMPERATURES[0] <= value <= _TEMPERATURES[1],
        "0, or a number from {:g} to {:g}".format(*_TEMPERATURES),
    ),
    "top_p": (lambda value: 0 < value <= 1, "a number in (0, 1]"),
    "min_p": (lambda value: 0 <= value < 1, "a number in [0, 1)"),
    "repetition_penalty": (
        lambda value: _PENALTIES[0] <= value <= _PENALTIES[1],
        "a number from {:g} to {:g}".format(*_PENALTIES),
    ),
    **dict.fromkeys(_COUNTING, (lambda value: -2 <= value <= 2, "a number from -2 to 2")),
}


@dataclass(frozen=True)
class SamplingParams:
    """How one prompt is continued. Raises ParameterError naming the parameter and its range.

    Args:
        max_new_tokens: at most this many tokens, 0 for none; None for as many as the context holds.
        temperature: 0 selects the most likely token; logits are divided by one from 1e-20 to 1e20.
        top_k: draw among this many of the most likely tokens; 0 for all.
        top_p: draw among the fewest tokens that reach this probability, after top_k; in (0, 1].
        min_p: draw among tokens with at least this share of the largest probability; in [0, 1).
        repetition_penalty: above 1 makes tokens of the prompt and of the text so far less likely; from 1e-10
            to 1e10.
        frequency_penalty: subtracted from the logit of each generated token as often as the text so far has
            it; from -2 to 2. Tokens of the prompt do not count.
        presence_penalty: subtracted once from the logit of each generated token; from -2 to 2.
        logit_bias: token id → a number from -100 to 100 that is added to the token's logit, for at most 1024
            tokens; kept as pairs in the order of their ids.
        stop: strings that end the text; they are not part of it.
        stop_token_ids: tokens that end the text beside the end token; they are not part of it.
        seed: the same seed gives the same tokens; None draws one from the system.
        logprobs: None for none; n for the log-probability of each token and of the n most likely ones, by
            the model alone (before bias, penalties, temperature and the rest).
        ignore_eos: go on past the end token, for measurements.
        prompt_lookup: at most this many tokens are drafted before each step, copied from an earlier
            occurrence of the last tokens, and checked in that step; 0 for none. The text is the same, and
            takes fewer steps if it repeats. Not together with a penalty.

    They apply in this order: logit_bias, repetition_penalty, frequency_penalty, presence_penalty,
    temperature, top_k, top_p, min_p. The first four also change which token is the most likely one.
    """

    max_new_tokens: int | None = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    logprobs: int | None = None
    ignore_eos: bool = field(default=False, kw_only=True)
    prompt_lookup: int = field(default=0, kw_only=True)
    frequency_penalty: float = field(default=0.0, kw_only=True)
    presence_penalty: float = field(default=0.0, kw_only=True)
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        self._set("stop", _stop_strings(self.stop))
        self._set("stop_token_ids", _stop_token_ids(self.stop_token_ids))
        if self.max_new_tokens is not None:
            self._set("max_new_tokens", integer("max_new_tokens", self.max_new_tokens, 0))
        self._set("top_k", integer("top_k", self.top_k, 0))
        if self.seed is not None:
            self._set("seed", integer("seed", self.seed, 0, _LARGEST_SEED))
        if self.logprobs is not None:
            self._set("logprobs", integer("logprobs", self.logprobs, 0, MAX_LOGPROBS))
        self._set("prompt_lookup", integer("prompt_lookup", self.prompt_lookup, 0, MAX_DRAFTS))
        self._set("ignore_eos", flag("ignore_eos", self.ignore_eos))
        for name, (in_range, expected) in _NUMBERS.items():
            self._set(name, number(name, getattr(self, name), in_range, expected))
        self._set("logit_bias", _logit_bias(self.logit_bias))
        for name in ("repetition_penalty", *_COUNTING):
            if self.prompt_lookup and getattr(self, name) != _NEUTRAL[name]:
                raise ParameterError(
                    f"prompt_lookup is {self.prompt_lookup} and {name} {getattr(self, name)}; expected only "
                    f"one of them, as a penalty makes each token's choice depend on the one before"
                )

    def check_vocabulary(self, size: int) -> None:
        """Raises ParameterError if ``logit_bias`` has a token id that a vocabulary of this size has not."""
        largest = max(dict(self.logit_bias), default=0)
        if largest >= size:
            raise ParameterError(f"logit_bias has the token id {largest}; expected 0 to {size - 1}")

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


class Sampler:
    """The settings of every slot, in tensors on the device that keep their addresses.

    Args:
        skips_unused: skip the parts of sampling that no slot in use needs. A captured call must not, as the
            host's decision would be captured with it. The kernel on a GPU decides on the device.
    """

    def __init__(
        self, max_batch_size: int, vocab_size: int, device: torch.device, *, skips_unused: bool = True
    ) -> None:
        self._sample_slots = ops.slot_sampler(device)
        self._skips_unused = skips_unused
        self._params: list[SamplingParams | None] = [None] * max_batch_size
        # The last row belongs to no slot: rows of logits without a sequence, whose slot is -1, read it.
        rows = max_batch_size + 1
        self._settings = {
            name: torch.full((rows,), value, dtype=_dtype(value), device=device)
            for name, value in {**_NEUTRAL, "is_biased": False, "seed": 0}.items()
        }
        # A row is cleared when a sequence that uses it starts; the last one of the biases stays 0.
        self._bias = torch.zeros(rows, vocab_size, dtype=torch.float32, device=device)
        self._seen = torch.zeros(rows, vocab_size, dtype=torch.bool, device=device)
        self._counts = torch.zeros(rows, vocab_size, dtype=torch.int32, device=device)
        # A Python bool would be copied to the device at each call.
        self._true = torch.ones((), dtype=torch.bool, device=device)
        self._needed = set() if skips_unused else set(_UNUSED)  # the settings that have an effect

    def start(
        self,
        slot: int,
        params: SamplingParams,
        seen_ids: Sequence[int],
        *,
        generated_ids: Sequence[int] = (),
    ) -> None:
        """Give a slot to a sequence.

        Args:
            seen_ids: the tokens before the text that the repetition penalty counts.
            generated_ids: the text so far, if the sequence goes on; every penalty counts it.
        """
        self._set_params(slot, params)
        seed = secrets.randbits(63) if params.seed is None else params.seed
        others = {"is_biased": bool(params.logit_bias), "seed": seed}
        for name, setting in self._settings.items():
            setting[slot] = others[name] if name in others else getattr(params, name)
        device, vocab_size = self._seen.device, self._seen.shape[1]
        if params.logit_bias:
            bias = dict(params.logit_bias)
            (values,) = to_device([list(bias.values())], device, torch.float32)
            self._bias[slot].zero_().index_copy_(0, to_device([list(bias)], device)[0], values)
        if params.repetition_penalty != 1:
            known = sorted({i for i in (*seen_ids, *generated_ids) if i < vocab_size})
            self._seen[slot].fill_(False).index_fill_(0, to_device([known], device)[0], True)
        if params.frequency_penalty or params.presence_penalty:
            counted = Counter(generated_ids)
            ids, counts = to_device([list(counted), list(counted.values())], device)  # each [ids]
            self._counts[slot].zero_().index_copy_(0, ids, counts.int())

    def stop(self, slot: int) -> None:
        """Take a slot back: its settings no longer count."""
        self._set_params(slot, None)

    def choose(self, logits: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """The next token of each row: → int64 [rows], ``INVALID`` if its logits are no distribution.

        Args:
            logits: float32 [rows, vocab_size].
            slots: int64 [rows], -1 for a row whose choice does not matter.
            positions: int64 [rows], of the tokens that the logits follow.
        """
        if self._sample_slots is not None:
            settings = (*self._settings.values(), self._bias, self._seen, self._counts)
            return self._sample_slots(logits, slots, positions + 1, *(setting[:-1] for setting in settings))
        is_drawn, is_penalized = "temperature" in self._needed, "repetition_penalty" in self._needed
        is_counted = not self._needed.isdisjoint(_COUNTING)
        ids = ops.sample(
            logits,
            **{name: self._settings[name][slots] for name in self._needed if name in _NEUTRAL},
            logit_bias=self._biases(slots) if "logit_bias" in self._needed else None,
            seen=self._seen[slots] if is_penalized else None,
            counts=self._counts[slots] if is_counted else None,
            seed=self._settings["seed"][slots] if is_drawn else None,
            positions=positions + 1 if is_drawn else None,
        )
        if is_penalized:
            self._seen.index_put_((slots, ids.clamp(min=0)), self._true)
        if is_counted:
            self._counts[slots, ids.clamp(min=0)] += 1
        return ids

    def _biases(self, slots: Tensor) -> Tensor:
        """The bias of each logit: float32 [rows, vocab_size]."""
        return self._bias[torch.where(self._settings["is_biased"][slots], slots, -1)]

    def _set_params(self, slot: int, params: SamplingParams | None) -> None:
        self._params[slot] = params
        if self._skips_unused:
            given = [vars(p) for p in self._params if p is not None]
            self._needed = {
                name for name, unused in _UNUSED.items() if any(values[name] != unused for values in given)
            }


def _dtype(value: float) -> torch.dtype:
    if isinstance(value, bool):
        return torch.bool
    return torch.int64 if isinstance(value, int) else torch.float32


def _logit_bias(given: object) -> tuple[tuple[int, float], ...]:
    """Pairs of a token id and its bias, in the order of the ids."""
    expected = "a mapping of token ids to numbers"
    pairs = list(given.items()) if isinstance(given, Mapping) else entries("logit_bias", given, expected)
    if len(pairs) > MAX_BIASES:
        raise ParameterError(f"logit_bias has {len(pairs)} entries; expected at most {MAX_BIASES}")
    biases: dict[int, float] = {}
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ParameterError(f"logit_bias has {short_repr(pair)}; expected {expected}")
        token_id = integer("logit_bias: a token id", pair[0], 0)
        if token_id in biases:
            raise ParameterError(f"logit_bias has the token id {token_id} twice; expected it once")
        name = f"logit_bias: the number of the token id {token_id}"
        biases[token_id] = number(name, pair[1], lambda n: -100 <= n <= 100, "a number from -100 to 100")
    return tuple(sorted(biases.items()))


def _stop_strings(stop: object) -> tuple[str, ...]:
    """A tuple of the strings, from one string or a list of them."""
    texts = [stop] if isinstance(stop, str) else entries("stop", stop, "a string, or a list of strings")
    for text in texts:
        if not isinstance(text, str) or not text:
            raise ParameterError(f"stop has {short_repr(text)}; expected strings that are not empty")
    return tuple(str(text) for text in texts)


def _stop_token_ids(ids: object) -> tuple[int, ...]:
    found = token_ids("stop_token_ids", ids, "a list of token ids")
    return tuple(integer("stop_token_ids", token_id, 0) for token_id in found)

"""SamplingParams, and the sampler that holds them on the device, a row for each slot."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adept_fast import choices, ops
from adept_fast.arguments import ParameterError, entries, flag, integer, number, token_ids
from adept_fast.ops.transfer import to_device
from adept_fast.system.short_text import short_repr

_LARGEST_SEED = 2**63 - 1
MOST_DRAFTS = choices.MAX_DRAFTS

# float32, in which they are applied, holds what a logit becomes by these, and by both at once.
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
}


@dataclass(frozen=True)
class SamplingParams:
    """How one prompt is continued. Raises ParameterError naming the parameter and its range.

    Args:
        max_new_tokens: at most this many tokens, 0 for none; None for as many as the context holds.
        temperature: 0 takes the most likely token; above, from 1e-20 to 1e20, logits are divided by it.
        top_k: draw among this many of the most likely tokens; 0 for all.
        top_p: draw among the fewest tokens that reach this probability, after top_k; in (0, 1].
        min_p: draw among tokens with at least this share of the largest probability; in [0, 1).
        repetition_penalty: above 1 makes tokens of the prompt and of the text so far less likely; from 1e-10
            to 1e10.
        stop: strings that end the text; they are not part of it.
        stop_token_ids: tokens that end the text beside the end token; they are not part of it.
        seed: the same seed gives the same tokens; None takes one from the system.
        logprobs: None for none; n for the log-probability of each token and of the n most likely ones, by
            the model alone (before penalty, temperature and the rest).
        ignore_eos: go on past the end token, for measurements.
        prompt_lookup: at most this many tokens are drafted before each step, copied from an earlier
            occurrence of the last tokens, and checked in that step; 0 for none. The text is the same, and
            takes fewer steps if it repeats. Not together with a repetition penalty.
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

    def __post_init__(self) -> None:
        self._set("stop", _stop_strings(self.stop))
        self._set("stop_token_ids", _stop_token_ids(self.stop_token_ids))
        if self.max_new_tokens is not None:
            self._set("max_new_tokens", integer("max_new_tokens", self.max_new_tokens, 0))
        self._set("top_k", integer("top_k", self.top_k, 0))
        if self.seed is not None:
            self._set("seed", integer("seed", self.seed, 0, _LARGEST_SEED))
        if self.logprobs is not None:
            self._set("logprobs", integer("logprobs", self.logprobs, 0, 1000))
        self._set("prompt_lookup", integer("prompt_lookup", self.prompt_lookup, 0, MOST_DRAFTS))
        self._set("ignore_eos", flag("ignore_eos", self.ignore_eos))
        for name, (in_range, expected) in _NUMBERS.items():
            self._set(name, number(name, getattr(self, name), in_range, expected))
        if self.prompt_lookup and self.repetition_penalty != 1:
            raise ParameterError(
                f"prompt_lookup is {self.prompt_lookup} and repetition_penalty {self.repetition_penalty}; "
                f"expected only one of them, as a penalty makes each token's choice depend on the one before"
            )

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
        self._temperature = torch.zeros(rows, device=device, dtype=torch.float32)
        self._top_k = torch.zeros(rows, dtype=torch.int64, device=device)
        self._top_p = torch.ones(rows, device=device, dtype=torch.float32)
        self._min_p = torch.zeros(rows, device=device, dtype=torch.float32)
        self._repetition_penalty = torch.ones(rows, device=device, dtype=torch.float32)
        self._seed = torch.zeros(rows, dtype=torch.int64, device=device)
        self._seen = torch.zeros(rows, vocab_size, dtype=torch.bool, device=device)
        # A Python bool would be copied to the device at each call.
        self._true = torch.ones((), dtype=torch.bool, device=device)
        self._needed = _Needed.by([] if skips_unused else None)

    def start(self, slot: int, params: SamplingParams, seen_ids: Sequence[int]) -> None:
        """Give a slot to a sequence; ``seen_ids`` are the tokens that the penalty counts from the start."""
        self._set_params(slot, params)
        self._temperature[slot] = params.temperature
        self._top_k[slot] = params.top_k
        self._top_p[slot] = params.top_p
        self._min_p[slot] = params.min_p
        self._repetition_penalty[slot] = params.repetition_penalty
        self._seed[slot] = secrets.randbits(63) if params.seed is None else params.seed
        if params.repetition_penalty != 1:
            known = sorted({token_id for token_id in seen_ids if token_id < self._seen.shape[1]})
            self._seen[slot].fill_(False).index_fill_(0, to_device([known], self._seen.device)[0], True)

    def stop(self, slot: int) -> None:
        """Take a slot back: its settings no longer count."""
        self._set_params(slot, None)

    def choose(self, logits: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """The next token of each row: → int64 [rows], ``INVALID`` where logits are no distribution.

        Args:
            logits: float32 [rows, vocab_size].
            slots: int64 [rows], -1 for a row whose choice does not matter.
            positions: int64 [rows], of the tokens that the logits follow.
        """
        if self._sample_slots is not None:
            settings = (setting[:-1] for setting in self._settings())
            return self._sample_slots(logits, slots, positions + 1, *settings)
        needed = self._needed

        def of_slots(is_needed: bool, setting: Tensor) -> Tensor | None:
            return setting[slots] if is_needed else None

        ids = ops.sample(
            logits,
            temperature=of_slots(needed.temperature, self._temperature),
            top_k=of_slots(needed.top_k, self._top_k),
            top_p=of_slots(needed.top_p, self._top_p),
            min_p=of_slots(needed.min_p, self._min_p),
            repetition_penalty=of_slots(needed.penalty, self._repetition_penalty),
            seen=of_slots(needed.penalty, self._seen),
            seed=of_slots(needed.temperature, self._seed),
            positions=positions + 1 if needed.temperature else None,
        )
        if needed.penalty:
            self._seen.index_put_((slots, ids.clamp(min=0)), self._true)
        return ids

    def _set_params(self, slot: int, params: SamplingParams | None) -> None:
        self._params[slot] = params
        if self._skips_unused:
            self._needed = _Needed.by([p for p in self._params if p is not None])

    def _settings(self) -> tuple[Tensor, ...]:
        """In the order of ``ops.slot_sampler``'s arguments."""
        return (
            self._temperature,
            self._top_k,
            self._top_p,
            self._min_p,
            self._repetition_penalty,
            self._seed,
            self._seen,
        )


@dataclass(frozen=True)
class _Needed:
    """The settings that some slot does not have at their defaults."""

    temperature: bool
    top_k: bool
    top_p: bool
    min_p: bool
    penalty: bool

    @classmethod
    def by(cls, params: Sequence[SamplingParams] | None) -> _Needed:
        """None for parameters that are not known."""
        if params is None:
            return cls(True, True, True, True, True)
        return cls(
            temperature=any(p.temperature > 0 for p in params),
            top_k=any(p.top_k > 0 for p in params),
            top_p=any(p.top_p < 1 for p in params),
            min_p=any(p.min_p > 0 for p in params),
            penalty=any(p.repetition_penalty != 1 for p in params),
        )


def _stop_strings(stop: object) -> tuple[str, ...]:
    """One string, or any list of strings, is as good as a tuple of them."""
    texts = [stop] if isinstance(stop, str) else entries("stop", stop, "a string, or a list of strings")
    for text in texts:
        if not isinstance(text, str) or not text:
            raise ParameterError(f"stop has {short_repr(text)}; expected strings that are not empty")
    return tuple(str(text) for text in texts)


def _stop_token_ids(ids: object) -> tuple[int, ...]:
    found = token_ids("stop_token_ids", ids, "a list of token ids")
    return tuple(integer("stop_token_ids", token_id, 0) for token_id in found)

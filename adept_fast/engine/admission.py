"""Admission: how many requests an engine takes in, and what it reads of their prompts at once."""

from __future__ import annotations

from dataclasses import dataclass

from adept_fast.arguments import ParameterError, flag, integer
from adept_fast.model import Persimmon
from adept_fast.system.short_text import short_repr

# A CPU's GEMM packs the weights at each call, which takes as long as this many tokens.
_GEMM_TOKENS = 64
_MIN_TOKENS = 16


@dataclass(frozen=True)
class Admission:
    """Raises ParameterError for a value out of its range.

    Args:
        step_tokens: of prompts and decoding rows in one step while a sequence decodes; None for as many
            tokens of prompts as the model reads in one chunk; ``auto`` for few, where that costs little.
        max_waiting: requests that wait for a slot; None for any number.
        prefix_cache: a slot keeps its keys and values until it is needed, and a request that begins with the
            same tokens reuses them. The model's weights must not change.
    """

    step_tokens: int | str | None = None
    max_waiting: int | None = None
    prefix_cache: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.step_tokens, str) and self.step_tokens != "auto":
            raise ParameterError(
                f"step_tokens is {short_repr(self.step_tokens)}; expected an integer, auto or None"
            )
        if self.step_tokens not in (None, "auto"):
            object.__setattr__(self, "step_tokens", integer("step_tokens", self.step_tokens, 1))
        if self.max_waiting is not None:
            object.__setattr__(self, "max_waiting", integer("max_waiting", self.max_waiting, 0))
        object.__setattr__(self, "prefix_cache", flag("prefix_cache", self.prefix_cache))

    def step_tokens_of(self, model: Persimmon, slots: int) -> int:
        """How many tokens a step has at most, for a model and a cache of ``slots``.

        Where a prompt's token costs what a row of a decode step costs, ``auto`` gives both an equal part: the
        time between tokens then at most doubles. Kernels and launches with a fixed cost need more tokens.
        """
        if isinstance(self.step_tokens, int):
            return self.step_tokens
        if self.step_tokens is None or model.device.type == "cuda":
            return model.chunk_tokens + slots
        return max(2 * slots, _MIN_TOKENS) if model.has_one_order else _GEMM_TOKENS + slots

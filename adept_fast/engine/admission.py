"""Admission: how many requests an engine takes in, and what it reads of their prompts at once."""

from __future__ import annotations

from dataclasses import dataclass

from adept_fast.arguments import flag, integer


@dataclass(frozen=True)
class Admission:
    """Raises ParameterError for a value out of its range.

    Args:
        step_tokens: of prompts and decoding rows in one step while a sequence decodes; None for as many
            tokens of prompts as the model reads in one chunk.
        max_waiting: requests that wait for a slot; None for any number.
        prefix_cache: a slot keeps its keys and values until it is needed, and a request that begins with the
            same tokens reuses them. The model's weights must not change.
    """

    step_tokens: int | None = None
    max_waiting: int | None = None
    prefix_cache: bool = False

    def __post_init__(self) -> None:
        if self.step_tokens is not None:
            object.__setattr__(self, "step_tokens", integer("step_tokens", self.step_tokens, 1))
        if self.max_waiting is not None:
            object.__setattr__(self, "max_waiting", integer("max_waiting", self.max_waiting, 0))
        object.__setattr__(self, "prefix_cache", flag("prefix_cache", self.prefix_cache))

"""Lengths: how many tokens prompts and answers have."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Lengths:
    """A distribution of numbers of tokens, between ``low`` and ``high``.

    With a ``median`` the logarithm is normal, of the standard deviation ``sigma``, and cut off at both ends;
    without one it is uniform.
    """

    low: int
    high: int
    median: float | None = None
    sigma: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """``64``, ``16-256`` (uniform in the logarithm), ``16-256:90:0.8`` (log-normal: median, sigma).

        Raises ValueError.
        """
        bounds, *rest = text.split(":")
        low, dash, high = bounds.partition("-")
        try:
            values = int(low), int(high if dash else low)
            median, sigma = (float(rest[0]), float(rest[1])) if rest else (None, 0.0)
        except (ValueError, IndexError):
            raise ValueError(f"{text!r}; expected TOKENS, LOW-HIGH or LOW-HIGH:MEDIAN:SIGMA") from None
        if not 1 <= values[0] <= values[1] or len(rest) not in (0, 2) or sigma < 0 or (median or 1) <= 0:
            raise ValueError(f"{text!r}; expected 1 ≤ LOW ≤ HIGH, MEDIAN above 0 and SIGMA of 0 or more")
        return cls(*values, median, sigma)

    def draw(self, count: int, numbers: np.random.Generator) -> list[int]:
        """That many numbers of tokens."""
        if self.median is None:
            logarithms = numbers.uniform(math.log(self.low), math.log(self.high + 1), count)
        else:
            logarithms = numbers.normal(math.log(self.median), self.sigma, count)
        tokens = np.clip(np.exp(logarithms).astype(np.int64), self.low, self.high)
        return [int(each) for each in tokens]

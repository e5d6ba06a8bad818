"""Arrivals of an open loop: times at which requests come, whether or not others are answered."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

DAY = 86400.0


@dataclass(frozen=True)
class Arrivals:
    """A Poisson process whose rate changes with time.

    Args:
        rate: requests a second, on average.
        swing: 0.6 makes the rate 1.6 of the average at the peak and 0.4 at the lowest, as a cosine of
            ``period`` seconds. At time 0 it is the lowest.
        burst: times the rate of the time between bursts, within a burst; 1 for no bursts.
        burst_every, burst_seconds: a burst begins every so often, half a ``burst_every`` after the start
            first, and lasts so long.
    """

    rate: float
    swing: float = 0.0
    period: float = DAY
    burst: float = 1.0
    burst_every: float = 60.0
    burst_seconds: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.rate < math.inf:
            raise ValueError(f"rate is {self.rate}; expected requests a second, above 0")
        if not 0 <= self.swing <= 1:
            raise ValueError(f"swing is {self.swing}; expected 0 to 1")
        if self.burst < 1 or not 0 < self.burst_seconds < self.burst_every or self.period <= 0:
            raise ValueError("a burst is at least 1 time the rate, and shorter than the time between bursts")

    def rate_at(self, time: float) -> float:
        """Requests a second."""
        share = self.burst_seconds / self.burst_every
        quiet = self.rate / (1 + share * (self.burst - 1))
        in_burst = (time - self.burst_every / 2) % self.burst_every < self.burst_seconds
        wave = 1 - self.swing * math.cos(2 * math.pi * time / self.period)
        return quiet * wave * (self.burst if in_burst else 1.0)

    def draw(self, seconds: float, numbers: np.random.Generator) -> list[float]:
        """Ascending times from 0 to ``seconds``."""
        if self.swing == 0 and self.burst == 1:
            return _steady(self.rate, seconds, numbers)
        share = self.burst_seconds / self.burst_every
        highest = self.rate * (1 + self.swing) * self.burst / (1 + share * (self.burst - 1))
        return _thinned(_steady(highest, seconds, numbers), self.rate_at, highest, numbers)


def _steady(rate: float, seconds: float, numbers: np.random.Generator) -> list[float]:
    # Given their number, the arrivals of a Poisson process are uniform.
    count = numbers.poisson(rate * seconds)
    return [float(time) for time in np.sort(numbers.uniform(0, seconds, count))]


def _thinned(
    times: list[float], rate_at: Callable[[float], float], highest: float, numbers: np.random.Generator
) -> list[float]:
    kept = numbers.uniform(0, highest, len(times))
    return [time for time, level in zip(times, kept, strict=True) if level < rate_at(time)]

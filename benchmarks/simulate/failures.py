"""Failures: when replicas die. Each loses its requests and its prefix cache, and is back after a while."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Failures:
    """Replicas die at the given times, and at random.

    Args:
        at: pairs of a time and a replica.
        mean_seconds: between two failures of one replica, exponential; None for none at random.
        restart_seconds: until a replica takes requests again: a new machine, the load of the model, the
            warm-up.
        max_attempts: a request that lost its replica is sent again until it has been sent so often.
    """

    at: tuple[tuple[float, int], ...] = ()
    mean_seconds: float | None = None
    restart_seconds: float = 60.0
    max_attempts: int = 5

    def __post_init__(self) -> None:
        if self.mean_seconds is not None and not self.mean_seconds > 0:
            raise ValueError(f"mean_seconds is {self.mean_seconds}; expected seconds above 0")
        if not self.restart_seconds >= 0 or self.max_attempts < 1:
            raise ValueError("restart_seconds is at least 0, and max_attempts at least 1")

    def uptime(self, numbers: np.random.Generator) -> float | None:
        """Seconds until a replica that has begun dies; None for ever."""
        return None if self.mean_seconds is None else float(numbers.exponential(self.mean_seconds))

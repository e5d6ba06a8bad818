"""Autoscaler: how many replicas there are to be, by the requests that are not answered."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Autoscaler:
    """Every ``every`` seconds the number of replicas follows the load.

    Args:
        target: unanswered requests for each replica.
        least, most: replicas.
        start_seconds: until a new replica takes requests.
        patience: seconds for which fewer replicas have to suffice before one is given back.
    """

    target: float
    least: int
    most: int
    every: float = 10.0
    start_seconds: float = 60.0
    patience: float = 300.0

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most or not self.target > 0 or not self.every > 0:
            raise ValueError("an autoscaler needs 1 ≤ least ≤ most, and a target and a period above 0")

    def wanted(self, unanswered: int) -> int:
        """Replicas for so many requests."""
        return min(self.most, max(self.least, math.ceil(unanswered / self.target)))

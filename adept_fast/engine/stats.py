"""Stats: what a Runtime's decode steps have found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stats:
    """Rows of the down-projections, summed over layers and steps: a row is read where a unit is not 0."""

    unit_rows_read: int
    unit_rows: int

    @property
    def zero_share(self) -> float:
        """The share of hidden units that were exactly 0 for every token of their step; 0 before any step."""
        return 1 - self.unit_rows_read / self.unit_rows if self.unit_rows else 0.0

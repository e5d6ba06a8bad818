"""Stats: the activation sparsity that decode steps have seen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stats:
    """Rows of the down-projections, summed over layers and steps.

    A step reads the row of a neuron if the neuron is active for at least one of its tokens.
    """

    unit_rows_read: int
    unit_rows: int

    @property
    def zero_share(self) -> float:
        """The share of neurons that were inactive for every token of their step; 0 before any step."""
        return 1 - self.unit_rows_read / self.unit_rows if self.unit_rows else 0.0

"""GraphBuckets: the shapes that decode steps are captured for, batch sizes and lengths."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

BATCH_SIZES = (1, 2, 4, 8, 16)
MIN_LENGTH = 256  # the positions of one block of decode_attention: a shorter bucket would save nothing


@dataclass(frozen=True)
class GraphBuckets:
    """The shapes of steps, in ascending order: numbers of rows, and bounds of the length.

    Lengths double, so the grid of a step is at most twice as large as its length needs.
    """

    batch_sizes: Sequence[int]
    lengths: Sequence[int]

    @classmethod
    def all(cls, max_rows: int, max_seq_len: int) -> GraphBuckets:
        """A bucket for every number of rows and every length."""
        return cls(range(1, max_rows + 1), range(1, max_seq_len + 1))

    @classmethod
    def few(cls, max_rows: int, max_seq_len: int) -> GraphBuckets:
        """For graphs: BATCH_SIZES and the maximum of rows; powers of two from MIN_LENGTH on."""
        sizes = [size for size in BATCH_SIZES if size < max_rows]
        lengths = []
        length = MIN_LENGTH
        while length < max_seq_len:
            lengths.append(length)
            length *= 2
        return cls((*sizes, max_rows), (*lengths, max_seq_len))

    def fitting(self, rows: int, length: int) -> tuple[int, int]:
        """The smallest shape with at least these rows and positions."""
        return (
            self.batch_sizes[bisect_left(self.batch_sizes, rows)],
            self.lengths[bisect_left(self.lengths, length)],
        )

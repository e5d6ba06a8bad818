"""GraphBuckets: the shapes that decode steps are captured for, batch sizes and lengths."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

BATCH_SIZES = (1, 2, 4, 8, 16)
MIN_LENGTH = 256  # the positions of one block of decode_attention: a shorter bucket would save nothing


@dataclass(frozen=True)
class GraphBuckets:
    """The shapes that steps come in, both rising: numbers of rows, and bounds of the length.

    With lengths that double, no step has a grid more than twice what its length needs.
    """

    batch_sizes: Sequence[int]
    lengths: Sequence[int]

    @classmethod
    def all(cls, max_rows: int, max_seq_len: int) -> GraphBuckets:
        """Every step as it is."""
        return cls(range(1, max_rows + 1), range(1, max_seq_len + 1))

    @classmethod
    def few(cls, max_rows: int, max_seq_len: int) -> GraphBuckets:
        """For graphs: BATCH_SIZES, then all more rows at once; powers of two from MIN_LENGTH on."""
        sizes = [size for size in BATCH_SIZES if size < max_rows]
        lengths = []
        length = MIN_LENGTH
        while length < max_seq_len:
            lengths.append(length)
            length *= 2
        return cls((*sizes, max_rows), (*lengths, max_seq_len))

    def fitting(self, rows: int, length: int) -> tuple[int, int]:
        """The smallest shape that has room for so many rows and positions."""
        return (
            self.batch_sizes[bisect_left(self.batch_sizes, rows)],
            self.lengths[bisect_left(self.lengths, length)],
        )

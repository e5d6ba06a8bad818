"""SharedMemoryRanks: ranks on one machine that exchange numbers through memory that all of them map.

Layout: a line of the cache with each rank's count of rounds, then two pieces for each rank, of even and of
odd rounds. In a round a rank writes its piece, publishes the round, and waits until all have. One that begins
the next round but one has seen all begin the next, so nobody reads a piece any more that is written again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from mmap import mmap

import torch
from torch import Tensor

from adept_fast.ops.ranks import Ranks

PIECE_BYTES = 1 << 20  # it stays in the cache, and holds the sums of 16 tokens of the 8B
_LINE_BYTES = (
    128  # the counts of two ranks are not in one line of the cache, nor in two that are fetched together
)
_YIELDS = 2000  # to other threads, before a wait sleeps
_NAP_SECONDS = 50e-6
_NAPS_BETWEEN_CHECKS = 200


def memory_bytes(count: int) -> int:
    """The size of the memory that ``count`` ranks share."""
    return count * (_LINE_BYTES + 2 * PIECE_BYTES)


class SharedMemoryRanks(Ranks):
    """Exchanges through ``memory``, of ``memory_bytes(count)``, 0 at first; those of a GPU too.

    Args:
        check: called now and then by a rank that waits, with the rank that it waits for and the seconds that
            it has slept; raises if it waits in vain.
    """

    def __init__(self, rank: int, count: int, memory: mmap, check: Callable[[int, float], None]) -> None:
        self.rank, self.count = rank, count
        self._check = check
        self._round = 0
        view = memoryview(memory)
        self._rounds = view[: count * _LINE_BYTES].cast("q")
        pieces = torch.frombuffer(memory, dtype=torch.uint8, offset=count * _LINE_BYTES)
        self._pieces = pieces[: count * 2 * PIECE_BYTES].view(2, count, PIECE_BYTES)
        self._others = [other for other in range(count) if other != rank]

    def exchange(self, numbers: Tensor) -> Iterator[tuple[slice, Sequence[Tensor]]]:
        size = PIECE_BYTES // numbers.element_size()
        for start in range(0, len(numbers), size):
            piece = numbers[start : start + size]
            pieces = self._pieces[(self._round + 1) % 2, :, : piece.nbytes].view(
                numbers.dtype
            )  # [rank, piece]
            pieces[self.rank].copy_(piece)
            self._meet()
            yield slice(start, start + size), [part.to(numbers.device) for part in pieces]

    def _meet(self) -> None:
        """Publish that this rank's piece of the next round is there, and wait for those of the others."""
        self._round += 1
        step = _LINE_BYTES // 8
        self._rounds[self.rank * step] = self._round
        for other in self._others:
            tries = 0
            while self._rounds[other * step] < self._round:
                tries += 1
                self._pause(other, tries)

    def _pause(self, other: int, tries: int) -> None:
        if tries < _YIELDS:
            _let_others_run()
            return
        if tries % _NAPS_BETWEEN_CHECKS == 0:
            self._check(other, (tries - _YIELDS) * _NAP_SECONDS)
        time.sleep(_NAP_SECONDS)


def _let_others_run() -> None:
    if hasattr(os, "sched_yield"):
        os.sched_yield()
    else:
        time.sleep(0)

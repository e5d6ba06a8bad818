"""Ranks: what the processes of a tensor-parallel model tell each other about a step.

Each adds up the same numbers in the order of the ranks. So all ranks have the same bits, and they depend on
the number of ranks only: not on the tokens beside a token, as those of a ring's reductions would.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class Ranks(ABC):
    """The rank of this process, how many there are, and their exchanges, which all make in the same order."""

    rank: int = 0
    count: int = 1

    @abstractmethod
    def exchange(self, numbers: Tensor) -> Iterator[tuple[slice, Sequence[Tensor]]]:
        """The numbers of all ranks in order, piece by piece: which of them, and each rank's [piece].

        They are valid until the next piece or exchange.

        Args:
            numbers: [n], contiguous, of one size on all ranks.
        """

    def sum(self, x: Tensor) -> Tensor:
        """The sum over ranks, shaped like x."""
        total = torch.empty_like(x)
        for at, parts in self.exchange(x.reshape(-1)):
            out = total.view(-1)[at]
            torch.add(parts[0], parts[1], out=out)
            for part in parts[2:]:
                out += part
        return total

    def largest(self, x: Tensor) -> Tensor:
        """The largest number of all ranks in each place, shaped like x; NaN where a rank has one."""
        found = x.reshape(-1).clone()
        for at, parts in self.exchange(x.reshape(-1)):
            for part in parts:
                torch.maximum(found[at], part, out=found[at])
        return found.view(x.shape)

    def shared(self, x: Tensor) -> Tensor:
        """What the first rank has as x, whose shape is the same on all ranks."""
        found = torch.empty_like(x)
        for at, parts in self.exchange(x.reshape(-1)):
            found.view(-1)[at] = parts[0]
        return found

    def gathered(self, x: Tensor, widths: Sequence[int]) -> Tensor:
        """On the first rank the columns of all: [rows, sum(widths)]; on others x, [rows, its own width]."""
        widest, rows = max(widths), len(x)
        padded = F.pad(x, (0, widest - x.shape[1])).reshape(-1)
        columns = x.new_empty(self.count if self.rank == 0 else 0, rows * widest)
        for at, parts in self.exchange(padded):
            for to, part in zip(columns, parts, strict=False):
                to[at] = part
        if self.rank:
            return x
        each = columns.view(self.count, rows, widest)
        return torch.cat([part[:, :width] for part, width in zip(each, widths, strict=True)], dim=1)

    def told(self, number: int, device: torch.device) -> list[int]:
        """The number that each rank tells the others."""
        (numbers,) = ([int(part) for part in parts] for _, parts in self.exchange(_one(number, device)))
        return numbers

    def addend(self, x: Tensor) -> Tensor:
        """What this rank adds to a sum over ranks of which x is a term: x on the first rank, else 0."""
        return x if self.rank == 0 else torch.zeros_like(x)


def _one(number: int, device: torch.device) -> Tensor:
    return torch.tensor([number], dtype=torch.int64, device=device)


class OneRank(Ranks):
    """One process, which has the whole model."""

    def exchange(self, numbers: Tensor) -> Iterator[tuple[slice, Sequence[Tensor]]]:
        yield slice(None), [numbers]

    def sum(self, x: Tensor) -> Tensor:
        return x

    def shared(self, x: Tensor) -> Tensor:
        return x

    def gathered(self, x: Tensor, widths: Sequence[int]) -> Tensor:
        return x


ONE_RANK = OneRank()

"""GroupRanks: ranks that exchange numbers by a process group of torch, on GPUs NCCL's.

Each exchange is one all-gather, which a CUDA graph captures: kernels of NCCL on the stream of the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from adept_fast.ops.ranks import Ranks


class GroupRanks(Ranks):
    """Exchanges by ``group``, a torch.distributed process group such as ProcessGroupNCCL."""

    def __init__(self, group: Any) -> None:
        self.rank, self.count = group.rank(), group.size()
        self._group = group

    def exchange(self, numbers: Tensor) -> Iterator[tuple[slice, Sequence[Tensor]]]:
        parts = numbers.new_empty(self.count, len(numbers))
        self._group.allgather([list(parts)], [numbers]).wait()
        yield slice(None), list(parts)

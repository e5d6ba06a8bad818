"""GroupRanks: ranks that exchange numbers by a process group of torch, on GPUs NCCL's.

Each exchange is one all-gather, which a CUDA graph captures: kernels of NCCL on the stream of the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from adept_fast.ops.ranks import Ranks

_distributed: Any = distributed  # whose types are not complete


class GroupRanks(Ranks):
    """Exchanges by ``group``, a torch.distributed process group such as ProcessGroupNCCL."""

    def __init__(self, group: Any) -> None:
        self.rank, self.count = group.rank(), group.size()
        self._group = group

    def exchange(self, numbers: Tensor) -> Iterator[tuple[slice, Sequence[Tensor]]]:
        parts = numbers.new_empty(self.count, len(numbers))
        self._group.allgather([list(parts)], [numbers]).wait()
        yield slice(None), list(parts)

    def abort(self) -> None:
        """End exchanges that wait for a rank that has ended, so that the device's stream goes on."""
        self._group.abort()


def nccl_group(store: Path, rank: int, count: int, device: torch.device) -> Any:
    """NCCL's group of ranks with a GPU each, which find each other by the file ``store``."""
    torch.cuda.set_device(device)
    group: Any = _distributed.ProcessGroupNCCL(_distributed.FileStore(str(store), count), rank, count)
    # The first exchange allocates, which no capture may.
    group.allreduce([torch.zeros(1, dtype=torch.float32, device=device)]).wait()
    return group

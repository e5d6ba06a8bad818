"""Memory in huge pages: weights that are streamed every step are read faster from fewer pages.

A step reads all weights. The TLB does not hold that many pages of 4 kB, and a miss costs up to two dozen
reads in a virtual machine; with pages of 2 MB misses are rare. Memory-mapped files have small pages, so
weights are copied if memory allows.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import torch
from torch import Tensor

HUGE_PAGE_BYTES = 2 * 1024 * 1024
_CHUNK_BYTES = 64 * HUGE_PAGE_BYTES
_ALIGNMENT_BYTES = 64  # a cache line
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def unavailable() -> str | None:
    """The reason that the system grants no huge pages on request; None if it does."""
    if not hasattr(mmap, "MADV_HUGEPAGE") or not _SETTING.is_file():
        return "the system has none"
    return f"{_SETTING} is never" if "[never]" in _SETTING.read_text() else None


class HugePages:
    """Tensors in huge pages, if the system has them, carved one after the other from large chunks.

    Memory goes back to the system when the last tensor of a chunk is freed.
    """

    def __init__(self) -> None:
        self._chunk = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._used = 0

    def empty(self, shape: torch.Size | tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor on the CPU, not initialised, that starts on a cache line."""
        size = torch.Size(shape).numel() * dtype.itemsize
        if self._used + size > len(self._chunk):
            self._chunk, self._used = _allocate(max(size, _CHUNK_BYTES)), 0
        tensor = self._chunk[self._used : self._used + size].view(dtype).view(shape)
        self._used += -(-size // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        return tensor

    def copy(self, tensor: Tensor) -> Tensor:
        """A contiguous copy."""
        return self.empty(tensor.shape, tensor.dtype).copy_(tensor)


def _allocate(size: int) -> Tensor:
    """uint8 [at least size], from the start of a huge page on."""
    whole = -(-size // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    if unavailable():
        return torch.empty(whole, dtype=torch.uint8, device="cpu")
    mapping = mmap.mmap(-1, whole + HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.frombuffer(mapping, dtype=torch.uint8)
    start = -memory.data_ptr() % HUGE_PAGE_BYTES
    return memory[start : start + whole]

"""Memory-mapped files: releases the memory of their pages after the contents are copied."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

from torch import Tensor

_MAPS = Path("/proc/self/maps")


def release_pages(tensor: Tensor) -> bool:
    """Give back the whole pages of a tensor that is part of a mapped file; they are read again when touched.

    Returns whether it was done: only on Linux, and never for other memory, whose contents would be lost.
    """
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if first >= end or not tensor.is_contiguous() or not _is_of_a_file(first, end):
        return False
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return bool(madvise(first, end - first, mmap.MADV_DONTNEED) == 0)


def _is_of_a_file(first: int, end: int) -> bool:
    if not _MAPS.is_file():
        return False
    for line in _MAPS.read_text().splitlines():
        # address-range permissions offset device inode path
        addresses, _, _, _, inode, *_ = line.split(maxsplit=5)
        mapped_from, mapped_to = (int(address, 16) for address in addresses.split("-"))
        if mapped_from <= first < mapped_to:
            return end <= mapped_to and inode != "0"
    return False

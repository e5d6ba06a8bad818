"""The read bandwidth of a device's memory, measured: the limit that a decode step is judged by."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from adept_fast import extension
from adept_fast.huge_pages import HugePages

_BUFFER_BYTES = 256 * 1024 * 1024  # well past any cache of a CPU; a GPU's second-level cache is smaller still
_REPEATS = 5


def measure_read_bandwidth(device: torch.device) -> float:
    """Bytes a second that all of torch's threads (or a GPU) read from memory: the best of a few goes."""
    shape, dtype = (_BUFFER_BYTES // 4,), torch.float32
    if device.type == "cpu":
        buffer = HugePages().empty(shape, dtype).fill_(1)
    else:
        buffer = torch.ones(shape, dtype=dtype, device=device)
    return max(_BUFFER_BYTES / _seconds_to_read(buffer) for _ in range(_REPEATS))


def _seconds_to_read(buffer: Tensor) -> float:
    started = time.perf_counter()
    if extension.load().loaded and not buffer.is_cuda:
        torch.ops.adept_fast.read(buffer)
    else:
        buffer.sum().item()  # the result's way to the host is what waits for the device
    return time.perf_counter() - started

"""The read bandwidth of a device's memory, measured: the limit that a decode step is judged by."""

from __future__ import annotations

import time

import torch

_BUFFER_BYTES = 256 * 1024 * 1024  # well past any cache of a CPU; a GPU's second-level cache is smaller still
_REPEATS = 5


def measure_read_bandwidth(device: torch.device) -> float:
    """Bytes a second that all of torch's threads (or a GPU) read from memory: the best of a few sums."""
    buffer = torch.ones(_BUFFER_BYTES // 4, dtype=torch.float32, device=device)
    return max(_BUFFER_BYTES / _seconds_to_sum(buffer) for _ in range(_REPEATS))


def _seconds_to_sum(buffer: torch.Tensor) -> float:
    started = time.perf_counter()
    buffer.sum().item()  # the result's way to the host is what waits for the device
    return time.perf_counter() - started

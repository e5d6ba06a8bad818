"""The read bandwidth of a device's memory, measured: the limit that a decode step is judged by."""

from __future__ import annotations

import time

import torch

from adept_fast import extension
from adept_fast.huge_pages import HugePages

_BUFFER_BYTES = 256 * 1024 * 1024  # well past any cache of a CPU; a GPU's second-level cache is smaller still
_REPEATS = 4


class BandwidthProbe:
    """Reads a buffer that it keeps with all of torch's threads, on a CPU in huge pages; takes some 30 ms."""

    def __init__(self, device: torch.device) -> None:
        shape, dtype = (_BUFFER_BYTES // 4,), torch.float32
        if device.type == "cpu":
            self._buffer = HugePages().empty(shape, dtype).fill_(1)
        else:
            self._buffer = torch.ones(shape, dtype=dtype, device=device)

    def measure(self) -> float:
        """Bytes a second: the best of a few goes."""
        return max(_BUFFER_BYTES / self._seconds() for _ in range(_REPEATS))

    def _seconds(self) -> float:
        started = time.perf_counter()
        if extension.load().loaded and not self._buffer.is_cuda:
            torch.ops.adept_fast.read(self._buffer)
        else:
            self._buffer.sum().item()  # the result's way to the host is what waits for the device
        return time.perf_counter() - started


def measure_read_bandwidth(device: torch.device) -> float:
    """Bytes a second that a device's memory gives, measured once."""
    return BandwidthProbe(device).measure()

"""The bandwidth of a device's memory, measured; reading it is the limit that a decode step is judged by.

``BandwidthProbe(device).measure()`` is the read bandwidth, by the extension's kernel that only reads.
``measure_copy_bandwidth(device)`` is what a copy moves, another figure: on a GPU it is less.
Both are bytes a second.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adept_fast import extension
from adept_fast.ops import cuda
from adept_fast.system.huge_pages import HugePages

_CPU_BYTES = 256 * 1024 * 1024  # well past any cache of a CPU
_GPU_BYTES = 1024 * 1024 * 1024  # well past the second-level cache of a GPU, which has up to 128 MB
_CACHES = 4  # a buffer of fewer times the second-level cache would be read from there in part
_REPEATS = 4
_CALLS = 8  # of a repeat on a GPU


class BandwidthProbe:
    """Reads a buffer that it keeps: with all of torch's threads on a CPU, by a kernel on a GPU.

    The buffer is 256 MiB in huge pages on a CPU, and on a GPU 1 GiB, or half of what is free. A measurement
    takes some 30 ms. Where the extension has no kernel for a GPU, torch's sum reads, which is said in a
    RuntimeWarning. Raises RuntimeError where a GPU has too little free memory to be measured.
    """

    def __init__(self, device: torch.device) -> None:
        self._buffer = _buffer(device)
        self._read = _reader(device)

    def measure(self) -> float:
        """Bytes a second: the best of a few goes."""
        return self._buffer.nbytes / _least_seconds(self._buffer.device, lambda: self._read(self._buffer))


def measure_read_bandwidth(device: torch.device) -> float:
    """Bytes a second that a device's memory gives to who only reads, measured once."""
    return BandwidthProbe(device).measure()


def measure_copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that torch's copy moves, those that are read and those that are written counted."""
    source = _buffer(device, buffers=2)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / _least_seconds(source.device, lambda: target.copy_(source))
    if device.type == "cuda":
        del source, target
        torch.cuda.empty_cache()  # others on this GPU may be waiting for the memory
    return bandwidth


def _buffer(device: torch.device, buffers: int = 1) -> Tensor:
    """float32, for one of so many buffers that are to be there together."""
    if device.type != "cuda":
        return HugePages().empty((_CPU_BYTES // 4,), torch.float32).fill_(1)
    free, _ = torch.cuda.mem_get_info(device)
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    size = min(_GPU_BYTES, free // 2 // buffers)
    if size < _CACHES * cache:
        raise RuntimeError(
            f"the bandwidth of {device} cannot be measured: {free} bytes are free; expected at least "
            f"{2 * buffers * _CACHES * cache}, so that its cache does not hold what is read"
        )
    return torch.ones(size // 16 * 4, device=device, dtype=torch.float32)  # in pieces of 16 bytes


def _reader(device: torch.device) -> Callable[[Tensor], Any]:
    """What reads a buffer once."""
    if device.type == "cuda":
        reason = cuda.unavailable(device)
        if reason is None:
            return torch.ops.adept_fast.read
        warnings.warn(
            f"torch's sum, which may be slower than a kernel, measures the bandwidth of {device}: {reason}",
            RuntimeWarning,
            stacklevel=3,
        )
    elif extension.load().loaded:
        return torch.ops.adept_fast.read
    return torch.sum


def _least_seconds(device: torch.device, call: Callable[[], Any]) -> float:
    """Of one call."""
    if device.type != "cuda":
        return min(_seconds_on_cpu(call) for _ in range(_REPEATS))
    with torch.cuda.device(device):
        return min(_seconds_on_gpu(call) for _ in range(_REPEATS))


def _seconds_on_cpu(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _seconds_on_gpu(call: Callable[[], Any]) -> float:
    """By events around calls that are queued back to back.

    The first call is not counted: while it runs, the host queues the others, so that the GPU never waits.
    """
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    call()
    begin.record()
    for _ in range(_CALLS):
        call()
    end.record()
    end.synchronize()
    return 1e-3 * float(begin.elapsed_time(end)) / _CALLS

"""Measures the bandwidth of a device's memory, in bytes per second.

Decode steps are compared with the read bandwidth: ``BandwidthProbe`` measures it with the extension's kernel
that only reads. ``measure_copy_bandwidth`` measures a copy, which is slower on a GPU.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adept_fast.ops import cpu, cuda
from adept_fast.system.huge_pages import HugePages

_CPU_BYTES = 256 * 1024 * 1024  # well past any cache of a CPU
_GPU_BYTES = 1024 * 1024 * 1024  # well past the second-level cache of a GPU, which has up to 128 MB
_CACHES = 4  # times the second-level cache: the minimum size of a buffer, most of which is then not cached
_REPEATS = 4
_CALLS = 8  # of a repeat on a GPU


class BandwidthProbe:
    """Reads a buffer that it keeps, with all of torch's threads on a CPU. A measurement takes about 30 ms.

    The buffer is 256 MiB in huge pages on a CPU; on a GPU 1 GiB, or half of the free memory. If the extension
    has no kernel for the GPU, torch's sum reads, with a RuntimeWarning.

    Raises RuntimeError if a GPU has too little free memory to be measured.
    """

    def __init__(self, device: torch.device) -> None:
        self._buffer = _buffer(device)
        self._read = _reader(device)

    def measure(self) -> float:
        """The best of a few measurements, in bytes per second."""
        return self._buffer.nbytes / _min_seconds(self._buffer.device, lambda: self._read(self._buffer))


def measure_read_bandwidth(device: torch.device) -> float:
    """The read bandwidth in bytes per second, measured once."""
    return BandwidthProbe(device).measure()


def measure_copy_bandwidth(device: torch.device) -> float:
    """The bytes per second that torch's copy reads and writes, together."""
    source = _buffer(device, buffers=2)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / _min_seconds(source.device, lambda: target.copy_(source))
    if device.type == "cuda":
        del source, target
        torch.cuda.empty_cache()  # others on this GPU may be waiting for the memory
    return bandwidth


def _buffer(device: torch.device, buffers: int = 1) -> Tensor:
    """A buffer in float32; memory has room for ``buffers`` of that size."""
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
    """A function that reads a buffer once."""
    reason = (cuda if device.type == "cuda" else cpu).unavailable(device)
    if reason is None:
        return torch.ops.adept_fast.read
    if device.type == "cuda":
        warnings.warn(
            f"torch's sum, which may be slower than a kernel, measures the bandwidth of {device}: {reason}",
            RuntimeWarning,
            stacklevel=3,
        )
    return torch.sum


def _min_seconds(device: torch.device, call: Callable[[], Any]) -> float:
    """The time of the fastest call."""
    if device.type != "cuda":
        return min(_seconds_on_cpu(call) for _ in range(_REPEATS))
    with torch.cuda.device(device):
        return min(_seconds_on_gpu(call) for _ in range(_REPEATS))


def _seconds_on_cpu(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _seconds_on_gpu(call: Callable[[], Any]) -> float:
    """The time of a call, by events around calls that are queued back to back.

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

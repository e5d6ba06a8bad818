"""The bandwidth that figures are judged by: what is read, and how it is timed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adept_fast.memory import bandwidth
from adept_fast.memory.bandwidth import BandwidthProbe, measure_copy_bandwidth, measure_read_bandwidth

CPU, GPU = torch.device("cpu"), torch.device("cuda:1")
MIB = 1024 * 1024


class FakeGpu:
    """A GPU in the place of torch.cuda, whose calls take as long as they say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int = 8 * MIB, cache: int = MIB) -> None:
        self.log: list[str] = []
        self.milliseconds = 0.0
        self.current: torch.device | None = None
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                gpu.log.append("event")
                self.at = gpu.milliseconds

            def synchronize(self) -> None:
                gpu.log.append("wait")

            def elapsed_time(self, end: Any) -> float:
                return float(end.at - self.at)

        @contextlib.contextmanager
        def device(which: torch.device) -> Iterator[None]:
            self.current = which
            yield
            self.current = None

        ones = torch.ones
        fake = {
            "Event": Event,
            "device": device,
            "mem_get_info": lambda device: (free, 80 * MIB),
            "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=cache),
            "empty_cache": lambda: gpu.log.append("empty"),
        }
        for name, value in fake.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch, "ones", lambda size, device, dtype: gpu.holding(ones(size), device))
        monkeypatch.setattr(
            torch, "empty_like", lambda source: gpu.holding(None, source.device, source.nbytes)
        )

    def holding(self, values: Any, device: torch.device, nbytes: int = 0) -> Any:
        return SimpleNamespace(
            device=device,
            nbytes=nbytes or values.nbytes,
            copy_=lambda source: self.queue("copy", 2.0),
        )

    def queue(self, name: str, milliseconds: float) -> None:
        assert self.current == GPU  # another device's stream would time nothing
        self.log.append(name)
        self.milliseconds += milliseconds

    def read(self, buffer: Any) -> None:
        # The first call of a process is slow, and so is every other repeat.
        slow = len(self.log) == 0 or self.log.count("wait") % 2 == 1
        self.queue("read", 9.0 if slow else 0.5)


@pytest.fixture
def no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth.cuda, "unavailable", lambda device: None)


def test_a_gpu_reads_calls_that_wait_for_nothing(monkeypatch: pytest.MonkeyPatch, no_reason: None) -> None:
    gpu = FakeGpu(monkeypatch)
    monkeypatch.setattr(bandwidth, "_reader", lambda device: gpu.read)
    assert BandwidthProbe(GPU).measure() == pytest.approx(4 * MIB / 0.5e-3)  # half of what is free; the best
    once = ["read", "event", *["read"] * 8, "event", "wait"]  # the first keeps the GPU busy meanwhile
    assert gpu.log == once * 4


def test_a_gpu_is_read_by_the_kernel(monkeypatch: pytest.MonkeyPatch, no_reason: None) -> None:
    FakeGpu(monkeypatch)
    assert BandwidthProbe(GPU)._read is torch.ops.adept_fast.read


def test_a_copy_counts_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(monkeypatch, free=16 * MIB)
    assert measure_copy_bandwidth(GPU) == pytest.approx(2 * 4 * MIB / 2e-3)  # two buffers take half of it
    assert gpu.log[-1] == "empty"


def test_the_buffer_is_a_gibibyte_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    FakeGpu(monkeypatch, free=80 * 1024 * MIB)
    monkeypatch.setattr(torch, "ones", lambda size, device, dtype: asked.append(4 * size))
    bandwidth._buffer(GPU)
    FakeGpu(monkeypatch, free=9 * MIB + 70)
    monkeypatch.setattr(torch, "ones", lambda size, device, dtype: asked.append(4 * size))
    bandwidth._buffer(GPU)
    assert asked == [1024 * MIB, (9 * MIB + 70) // 2 // 16 * 16]


def test_too_little_memory_is_no_measurement(monkeypatch: pytest.MonkeyPatch, no_reason: None) -> None:
    FakeGpu(monkeypatch, free=8 * MIB - 2)
    with pytest.raises(RuntimeError, match=r"cuda:1 cannot be measured: 8388606 bytes are free; .* 8388608"):
        BandwidthProbe(GPU)


def test_without_a_kernel_torch_reads_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGpu(monkeypatch)
    monkeypatch.setattr(bandwidth.cuda, "unavailable", lambda device: "no nvcc")
    with pytest.warns(RuntimeWarning, match="torch's sum, which may be slower .* of cuda:1: no nvcc"):
        probe = BandwidthProbe(GPU)
    assert probe._read is torch.sum


def test_a_cpu_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "_CPU_BYTES", MIB)
    for measured in (measure_read_bandwidth(CPU), measure_copy_bandwidth(CPU)):
        assert 1e6 < measured < 1e14
    assert BandwidthProbe(CPU)._read is torch.ops.adept_fast.read
    monkeypatch.setattr(bandwidth.cpu, "unavailable", lambda device: "no compiler")
    assert BandwidthProbe(CPU)._read is torch.sum
    assert measure_read_bandwidth(CPU) > 1e6

"""Samples that are taken in turn, with the memory bandwidth measured beside each.

The memory bandwidth of a shared machine changes by the second. A time means something only beside a bandwidth
that was measured just before and just after it, and a ratio only between samples of one round. Samples during
which the bandwidth changed, or other processes used the machine, are taken again and counted.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

from adept_fast.memory.bandwidth import BandwidthProbe
from benchmarks.result_file import summarise

LONGEST_WAIT = 10.0  # seconds, for other processes to end before a sample
Measure = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """Takes a sample: ``seconds_per_step``, perhaps ``bytes_per_step``, and further facts; its process."""

    measure: Measure
    pid: int = field(default_factory=os.getpid)


@dataclass(frozen=True)
class Limits:
    """Which samples are dropped, and how many attempts a round makes before it goes on without a sample."""

    bandwidth_change: float = 0.15
    others_share: float = 0.10
    attempts: int = 5


@dataclass(frozen=True)
class Sample:
    """``bytes_per_step`` is None if memory does not limit the step."""

    seconds_per_step: float
    bytes_per_step: float | None
    bandwidth: float
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def floor_seconds(self) -> float:
        """Of a step whose only limit is memory."""
        return (self.bytes_per_step or 0.0) / self.bandwidth


Samples = list[Sample | None]  # one a round; None: no clean sample


class Probe(Protocol):
    """Measures a bandwidth."""

    def measure(self) -> float:
        """Bytes a second."""


@dataclass(frozen=True)
class CpuTime:
    """Seconds of processor time since the machine, or the processes, began."""

    wall: float
    machine: float
    ours: float

    @classmethod
    def now(cls, pids: Iterable[int]) -> CpuTime:
        """``ours``: used by this process, its ended children and ``pids``; ``machine``: all but idle."""
        tick = os.sysconf("SC_CLK_TCK")
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        idle = fields[3] + fields[4]
        times = os.times()
        ours = sum(_process_ticks(pid) for pid in {os.getpid(), *pids}) / tick
        ours += times.children_user + times.children_system
        return cls(time.perf_counter(), (sum(fields) - idle) / tick, ours)

    def others_share_since(self, before: CpuTime) -> float:
        """The share of the machine's processors that other processes used meanwhile."""
        others = (self.machine - before.machine) - (self.ours - before.ours)
        return max(0.0, others / ((self.wall - before.wall) * (os.cpu_count() or 1)))


def _process_ticks(pid: int) -> int:
    # The name in parentheses may hold spaces, so counting starts behind it.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def sample_in_turn(
    jobs: dict[str, Job],
    rounds: int,
    limits: Limits,
    probe: Probe | None = None,
    *,
    is_warm: bool = False,
) -> tuple[dict[str, Samples], dict[str, Counter[str]]]:
    """A sample of every job in every round, and why samples were dropped.

    ``probe`` measures the bandwidth, by default that of a CPU's memory. ``is_warm``: every job has run once.
    """
    probe = probe or BandwidthProbe(torch.device("cpu"))
    for job in () if is_warm else tqdm(jobs.values(), desc="warming up", disable=None):
        job.measure()
    samples: dict[str, Samples] = {name: [] for name in jobs}
    dropped: dict[str, Counter[str]] = {name: Counter() for name in jobs}
    with tqdm(total=rounds * len(jobs), desc="samples", disable=None) as bar:
        for at in range(rounds):
            for name in order_of_round(list(jobs), at):
                samples[name].append(_clean_sample(jobs[name], probe, limits, dropped[name]))
                bar.update()
    return samples, dropped


def order_of_round(items: list[Any], at: int) -> list[Any]:
    """Rounds begin with different items, and every other round goes backwards: no item follows one always."""
    shift = at % len(items)
    turned = items[shift:] + items[:shift]
    return turned[::-1] if at % 2 else turned


def _clean_sample(job: Job, probe: Probe, limits: Limits, dropped: Counter[str]) -> Sample | None:
    for _ in range(limits.attempts):
        wait_for_quiet(limits.others_share)
        start = CpuTime.now([job.pid])
        before = probe.measure()
        taken = job.measure()
        after = probe.measure()
        others = CpuTime.now([job.pid]).others_share_since(start)
        if others > limits.others_share:
            dropped["others used the machine"] += 1
        elif abs(before - after) > limits.bandwidth_change * max(before, after):
            dropped["the bandwidth changed"] += 1
        else:
            seconds, bytes_read = taken.pop("seconds_per_step"), taken.pop("bytes_per_step", None)
            return Sample(seconds, bytes_read, (before + after) / 2, taken)
    return None


def wait_for_quiet(others_share: float) -> None:
    """Wait until other processes use no larger share of the machine, but not forever on a busy one."""
    deadline = time.perf_counter() + LONGEST_WAIT
    while time.perf_counter() < deadline:
        start = CpuTime.now([])
        time.sleep(0.1)  # ten ticks of the processors' clocks
        if CpuTime.now([]).others_share_since(start) <= others_share:
            return


def counts(clean: int, dropped: Counter[str]) -> dict[str, Any]:
    """How many samples are behind a figure."""
    return {"clean_samples": clean, "dropped_samples": dict(dropped), "dropped_total": dropped.total()}


def figures(samples: Samples, dropped: Counter[str], tokens_per_step: int = 1) -> dict[str, Any]:
    """The figures of one job in a result file."""
    clean = [sample for sample in samples if sample is not None]
    result = counts(len(clean), dropped)
    if not clean:
        return result
    last = clean[-1]
    result |= {name: value for name, value in last.extra.items() if value is not None}
    result |= {
        "tokens_per_second": summarise(tokens_per_step / sample.seconds_per_step for sample in clean),
        "milliseconds_per_step": summarise(1e3 * sample.seconds_per_step for sample in clean),
        "read_bandwidth_bytes_per_second": summarise(sample.bandwidth for sample in clean),
    }
    if last.bytes_per_step is not None:
        result |= {
            "bytes_per_step": round(last.bytes_per_step),
            "bytes_per_second": summarise(
                (sample.bytes_per_step or 0) / sample.seconds_per_step for sample in clean
            ),
            "share_of_bandwidth": summarise(
                sample.floor_seconds / sample.seconds_per_step for sample in clean
            ),
            "floor_milliseconds": summarise(1e3 * sample.floor_seconds for sample in clean),
        }
    dense = last.extra.get("dense_bytes_per_step")
    if dense is not None:  # read by a step without inactive neurons
        floors = [dense / sample.bandwidth for sample in clean]
        result |= {
            "dense_floor_milliseconds": summarise(1e3 * floor for floor in floors),
            "share_of_dense_floor": summarise(
                floor / sample.seconds_per_step for floor, sample in zip(floors, clean, strict=True)
            ),
        }
    return result


def speedup(ours: Samples, others: Samples) -> dict[str, Any] | None:
    """How many times as fast ``ours`` is as ``others``, over the rounds that have both; None without any.

    ``speedup`` divides times as measured; ``at_equal_bandwidth`` scales each by its bandwidth, which is right
    if memory limits both.
    """
    pairs = [(a, b) for a, b in zip(ours, others, strict=True) if a is not None and b is not None]
    if not pairs:
        return None
    return {
        "speedup": summarise(b.seconds_per_step / a.seconds_per_step for a, b in pairs),
        "at_equal_bandwidth": summarise(
            (b.seconds_per_step * b.bandwidth) / (a.seconds_per_step * a.bandwidth) for a, b in pairs
        ),
        "rounds": len(pairs),
    }


def speedups(samples: dict[str, Samples], ours: str) -> dict[str, dict[str, dict[str, Any]]]:
    """``speedup`` of every job whose name begins with ``ours`` against every other job."""
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for name, own in samples.items():
        for other, theirs in samples.items():
            if name.startswith(ours) and not other.startswith(ours):
                found = speedup(own, theirs)
                if found is not None:
                    result.setdefault(name, {})[other] = found
    return result

"""Runtimes side by side: each in a process of its own, sampled in turn, the bandwidth beside each sample.

A shared machine's memory bandwidth changes by the second, so a figure means something only beside a bandwidth
that was measured just before and just after it, and a ratio only between samples of one round. Samples during
which the bandwidth changed, or others used the machine, are taken again, and counted.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from harness import CpuTime, summarise
from tqdm import tqdm

from adept_fast.memory.bandwidth import BandwidthProbe

HERE = Path(__file__).resolve().parent
FLOATS = ("bfloat16", "float32", "float16")
RIVALS = {
    "adept-fast": ("adept_fast_worker.py", ("float16", "bfloat16", "float32", "int8", "int4", "fp8")),
    "transformers": ("transformers_worker.py", FLOATS),
    "transformers-compiled": ("transformers_compiled_worker.py", FLOATS),
    "eager": ("eager_worker.py", FLOATS),
    "eager-compiled": ("eager_compiled_worker.py", FLOATS),
    "llama.cpp": ("llama_cpp_worker.py", ("BF16", "F16", "Q8_0", "Q4_0")),
    "openvino": ("openvino_worker.py", ("float16", "int8", "int4")),
}
OURS = "adept-fast"
LONGEST_WAIT = 10.0  # seconds, for others to leave the machine alone before a sample


class WorkerError(RuntimeError):
    """A worker failed, or ended."""


class AbsentError(RuntimeError):
    """A contestant cannot take part, for the reason given."""


@dataclass(frozen=True)
class Contestant:
    """A runtime and the format of its weights: ``llama.cpp:Q8_0``."""

    rival: str
    format: str

    def __str__(self) -> str:
        return f"{self.rival}:{self.format}"

    @classmethod
    def parse(cls, text: str) -> Contestant:
        rival, _, format = text.partition(":")
        if rival not in RIVALS or format not in RIVALS[rival][1]:
            known = ", ".join(f"{name}:{'|'.join(formats)}" for name, (_, formats) in RIVALS.items())
            raise ValueError(f"{text!r} is no contestant; expected one of {known}")
        return cls(rival, format)


@dataclass(frozen=True)
class Limits:
    """When a sample is not to be used, and how often it is taken again before the round goes on without."""

    bandwidth_change: float = 0.15
    others_share: float = 0.10
    attempts: int = 5


@dataclass(frozen=True)
class Sample:
    """``bytes_per_step`` is None where memory is not what limits the step."""

    seconds_per_step: float
    bytes_per_step: float | None
    bandwidth: float
    extra: dict[str, Any] = field(default_factory=dict)


class Worker:
    """A contestant's process; it sleeps when nothing is asked of it."""

    def __init__(self, contestant: Contestant, python: str, threads: int) -> None:
        self.contestant = contestant
        self.facts: dict[str, Any] = {}
        self._process = subprocess.Popen(
            [python, str(HERE / "rivals" / RIVALS[contestant.rival][0])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | self._environment(threads),
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"op": operation, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"{self.contestant} ended during {operation}")
        answer = json.loads(line)
        if "absent" in answer:
            raise AbsentError(answer["absent"])
        if "error" in answer:
            raise WorkerError(f"{self.contestant}: {answer['error']}")
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @staticmethod
    def _environment(threads: int) -> dict[str, str]:
        # Whoever makes threads of its own is told by the worker; these are for the libraries below it.
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        return {name: str(threads) for name in names} | {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }


@dataclass
class Contest:
    """Who takes part, and who is absent and why."""

    workers: list[Worker] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)

    def load(
        self, checkpoint: Path, *, threads: int, context: int, batch: int = 1, device: str = "cpu"
    ) -> tuple[list[Worker], dict[str, str]]:
        """Have everyone load: who can, and why the others cannot. Where ours fails, that is an error."""
        load = {"checkpoint": str(checkpoint.resolve()), "threads": threads, "context": context}
        able, unable = [], {}
        for worker in tqdm(self.workers, desc="loading", disable=None):
            format = worker.contestant.format
            try:
                worker.facts = worker.call("load", format=format, batch=batch, device=device, **load)
                able.append(worker)
            except (AbsentError, WorkerError) as error:
                unable[str(worker.contestant)] = _reason(worker, error)
        return able, unable

    def dismiss(self, contestant: str) -> None:
        (worker,) = (worker for worker in self.workers if str(worker.contestant) == contestant)
        self.workers.remove(worker)
        worker.close()


def _reason(worker: Worker, error: AbsentError | WorkerError) -> str:
    """What is said of a rival that failed; where ours did, the error is raised."""
    if worker.contestant.rival == OURS and isinstance(error, WorkerError):
        raise error
    return str(error)


@contextmanager
def enter(
    contestants: list[Contestant],
    *,
    pythons: dict[str, str],
    threads: int,
    started: Callable[[int], None] = lambda pid: None,
) -> Iterator[Contest]:
    """Start everyone; whoever is not installed is absent. Nothing is loaded yet.

    ``started`` is told the process id of each worker.
    """
    result = Contest()
    try:
        for contestant in contestants:
            python = pythons.get(contestant.rival, sys.executable)
            if shutil.which(python) is None:
                result.absent[str(contestant)] = "there is no such interpreter as was named for it"
                continue
            worker = Worker(contestant, python, threads)
            result.workers.append(worker)
            started(worker.pid)
            try:
                result.versions[contestant.rival] = worker.call("hello")["versions"]
            except (AbsentError, WorkerError) as error:
                result.absent[str(contestant)] = _reason(worker, error)
                result.dismiss(str(contestant))
        yield result
    finally:
        for worker in result.workers:
            worker.close()


@contextmanager
def contest(
    contestants: list[Contestant],
    checkpoint: Path,
    *,
    pythons: dict[str, str],
    threads: int,
    context: int,
    batch: int = 1,
    device: str = "cpu",
    started: Callable[[int], None] = lambda pid: None,
) -> Iterator[Contest]:
    """As ``enter``, and everyone has loaded; whoever could not is absent."""
    with enter(contestants, pythons=pythons, threads=threads, started=started) as result:
        _, unable = result.load(checkpoint, threads=threads, context=context, batch=batch, device=device)
        for contestant, reason in unable.items():
            result.absent[contestant] = reason
            result.dismiss(contestant)
        yield result


class Probe(Protocol):
    """Measures a bandwidth."""

    def measure(self) -> float:
        """Bytes a second."""


# Takes a sample's measurement: the seconds of a step, the bytes that it reads, and what else there is to say.
Measure = Callable[[Worker], dict[str, Any]]


def warm_up(jobs: dict[str, tuple[Worker, Measure]]) -> dict[str, str]:
    """Run everyone once; whoever cannot is taken out of ``jobs``, and named with the reason."""
    unable = {}
    for name, (worker, measure) in tqdm(list(jobs.items()), desc="warming up", disable=None):
        try:
            measure(worker)
        except (AbsentError, WorkerError) as error:
            unable[name] = _reason(worker, error)
            del jobs[name]
    return unable


def sample_in_turn(
    jobs: dict[str, tuple[Worker, Measure]],
    rounds: int,
    limits: Limits,
    probe: Probe | None = None,
    *,
    is_warm: bool = False,
) -> tuple[dict[str, list[Sample | None]], dict[str, Counter]]:
    """A sample of every job in every round (None where none was clean), and why samples were dropped.

    ``probe`` measures the bandwidth beside each, by default that of a CPU's memory. ``is_warm``: ``warm_up``
    has been called.
    """
    probe = probe or BandwidthProbe(torch.device("cpu"))
    for worker, measure in () if is_warm else tqdm(jobs.values(), desc="warming up", disable=None):
        measure(worker)
    samples: dict[str, list[Sample | None]] = {name: [] for name in jobs}
    dropped: dict[str, Counter] = {name: Counter() for name in jobs}
    names = list(jobs)
    with tqdm(total=rounds * len(jobs), desc="samples", disable=None) as bar:
        for at in range(rounds):
            # Each round begins with another, so that none always comes after the same one.
            shift = at % len(names)
            for name in names[shift:] + names[:shift]:
                samples[name].append(_clean_sample(*jobs[name], probe, limits, dropped[name]))
                bar.update()
    return samples, dropped


def _clean_sample(
    worker: Worker, measure: Measure, probe: Probe, limits: Limits, dropped: Counter
) -> Sample | None:
    for _ in range(limits.attempts):
        _wait_for_quiet(limits)
        start = CpuTime.now([worker.pid])
        before = probe.measure()
        taken = measure(worker)
        after = probe.measure()
        others = CpuTime.now([worker.pid]).others_share_since(start)
        if others > limits.others_share:
            dropped["others used the machine"] += 1
        elif abs(before - after) > limits.bandwidth_change * max(before, after):
            dropped["the bandwidth changed"] += 1
        else:
            return Sample(
                seconds_per_step=taken.pop("seconds_per_step"),
                bytes_per_step=taken.pop("bytes_per_step", None),
                bandwidth=(before + after) / 2,
                extra=taken,
            )
    return None


def _wait_for_quiet(limits: Limits) -> None:
    """A sample that others are sure to spoil need not be taken; but on a busy machine, go on in the end."""
    deadline = time.perf_counter() + LONGEST_WAIT
    while time.perf_counter() < deadline:
        start = CpuTime.now([])
        time.sleep(0.1)  # ten ticks of the processors' clocks
        if CpuTime.now([]).others_share_since(start) <= limits.others_share:
            return


def figures(samples: list[Sample | None], dropped: Counter, tokens_per_step: int = 1) -> dict[str, Any]:
    """What a result file says of one contestant."""
    clean = [sample for sample in samples if sample is not None]
    result: dict[str, Any] = {
        "clean_samples": len(clean),
        "dropped_samples": dict(dropped),
        "dropped_total": dropped.total(),
    }
    if not clean:
        return result
    result |= {name: value for name, value in clean[-1].extra.items() if value is not None}
    result |= {
        "tokens_per_second": summarise(tokens_per_step / sample.seconds_per_step for sample in clean),
        "milliseconds_per_step": summarise(1e3 * sample.seconds_per_step for sample in clean),
        "read_bandwidth_bytes_per_second": summarise(sample.bandwidth for sample in clean),
    }
    if clean[-1].bytes_per_step is not None:
        read = [(sample.bytes_per_step or 0) / sample.seconds_per_step for sample in clean]
        result |= {
            "bytes_per_step": round(clean[-1].bytes_per_step),
            "bytes_per_second": summarise(read),
            "share_of_bandwidth": summarise(
                speed / sample.bandwidth for speed, sample in zip(read, clean, strict=True)
            ),
            "floor_milliseconds": summarise(
                1e3 * (sample.bytes_per_step or 0) / sample.bandwidth for sample in clean
            ),
        }
    dense = clean[-1].extra.get("dense_bytes_per_step")
    if dense is not None:  # what a step would read if no unit were 0
        floors = [dense / sample.bandwidth for sample in clean]
        result |= {
            "dense_floor_milliseconds": summarise(1e3 * floor for floor in floors),
            "share_of_dense_floor": summarise(
                floor / sample.seconds_per_step for floor, sample in zip(floors, clean, strict=True)
            ),
        }
    return result


def ratios(samples: dict[str, list[Sample | None]]) -> dict[str, dict[str, dict[str, Any]]]:
    """How many times as fast ours are as each rival: ours → rival → figures over the rounds both sampled.

    ``speedup`` compares times as they were; ``at_equal_bandwidth`` each time its bandwidth, which is right
    where memory is the limit of both.
    """
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for ours, own in samples.items():
        if not ours.startswith(OURS):
            continue
        for rival, others in samples.items():
            pairs = [(a, b) for a, b in zip(own, others, strict=True) if a is not None and b is not None]
            if rival.startswith(OURS) or not pairs:
                continue
            result.setdefault(ours, {})[rival] = {
                "speedup": summarise(b.seconds_per_step / a.seconds_per_step for a, b in pairs),
                "at_equal_bandwidth": summarise(
                    (b.seconds_per_step * b.bandwidth) / (a.seconds_per_step * a.bandwidth) for a, b in pairs
                ),
                "rounds": len(pairs),
            }
    return result

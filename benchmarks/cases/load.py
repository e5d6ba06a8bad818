"""From the start of a process to the first token, with the checkpoint's files in memory and not.

    python -m benchmarks load --checkpoint CHECKPOINT --output benchmarks/results/DEVICE/load-0.7g.json

Timed from the start of the process: ``import`` until it answers with its version, ``load``, and the first
token of a short prompt. ``warm``: the checkpoint's files were read before, and the system still holds them.
``dropped``: posix_fadvise, which needs no privilege, has dropped them from the page cache; mincore counts the
pages that stayed, and if there are many, that row is absent. Python and its
libraries are warm in both.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from benchmarks.cases.speed import OUR_CPU_FORMATS
from benchmarks.options import Arguments, print_figures, runtime_options, take_arguments
from benchmarks.result_file import describe_checkpoint, describe_run, summarise, write_report
from benchmarks.samples import CpuTime, counts, order_of_round
from benchmarks.workers import AbsentError, Variant, Worker, WorkerError, reason_of
from benchmarks.workloads import prompt_ids

PARTS = ("import", "load", "first_token", "total")
PROMPT_TOKENS = 16
WARM, DROPPED = "warm", "dropped"
MOST_LEFT = 0.05  # of the files may be resident after they were dropped


class StillResidentError(RuntimeError):
    """The system did not let go of the files."""


@dataclass(frozen=True)
class Start:
    """A start that was timed: seconds by part, and how much of the files was resident before."""

    seconds: dict[str, float]
    resident_share: float
    version: dict[str, str]


@click.command()
@runtime_options(OUR_CPU_FORMATS)
def main(**options: Any) -> None:
    """Time starts."""
    arguments = take_arguments(options)
    jobs = [(variant, state) for variant in arguments.variants for state in (WARM, DROPPED)]
    starts: dict[str, list[Start]] = {}
    dropped: dict[str, Counter[str]] = {}
    absent: dict[str, str] = {}
    with tqdm(total=(arguments.samples + 1) * len(jobs), desc="starts", disable=None) as bar:
        for at in range(-1, arguments.samples):  # the first fills caches, and converts for a baseline
            for variant, state in order_of_round(jobs, max(0, at)):
                bar.update()
                name = f"{variant}, {state}"
                if name in absent:
                    continue
                try:
                    started = clean_start(arguments, variant, state, dropped.setdefault(name, Counter()))
                except (AbsentError, WorkerError, StillResidentError) as error:
                    absent[name] = reason_of(name, error)
                    continue
                if at >= 0 and started is not None:
                    starts.setdefault(name, []).append(started)
    report = describe_run("load", arguments.samples, arguments.threads)
    report["versions"]["rivals"] = {
        name.partition(":")[0]: taken[-1].version for name, taken in starts.items()
    }
    report |= {
        "model": describe_checkpoint(arguments.checkpoint),
        "checkpoint_bytes": sum(file.stat().st_size for file in files_of(arguments.checkpoint)),
        "measured": {name: figures(taken, dropped[name]) for name, taken in starts.items()},
        "absent": absent,
        "prompt_tokens": PROMPT_TOKENS,
    }
    seconds = {part: (f"{part}_seconds", 1.0, ".2f") for part in PARTS}
    columns = seconds | {"resident before, %": ("resident_share_before", 100.0, ".0f")}
    print_figures(report["measured"], absent, columns)
    write_report(report, arguments.output)


def clean_start(arguments: Arguments, variant: Variant, state: str, dropped: Counter[str]) -> Start | None:
    """A start while no other process used the machine; None after as many attempts as are allowed."""
    for _ in range(arguments.limits.attempts):
        before = CpuTime.now([])
        started = start(arguments, variant, state)
        if CpuTime.now([]).others_share_since(before) <= arguments.limits.others_share:
            return started
        dropped["others used the machine"] += 1
    return None


def start(arguments: Arguments, variant: Variant, state: str) -> Start:
    """Raises StillResidentError if files were to be dropped and were not."""
    (drop if state == DROPPED else read)(arguments.checkpoint)
    resident = resident_share(arguments.checkpoint)
    if state == DROPPED and resident > MOST_LEFT:
        raise StillResidentError(f"{resident:.0%} of the files stayed in memory")
    times = [time.perf_counter()]
    python = arguments.interpreters.get(variant.runtime, sys.executable)
    worker = Worker(variant, python, arguments.threads)
    try:
        version = worker.call("hello")["versions"]
        times.append(time.perf_counter())
        worker.load(arguments.checkpoint, threads=arguments.threads, context=PROMPT_TOKENS + 1)
        times.append(time.perf_counter())
        worker.call("prefill", prompt=prompt_ids(PROMPT_TOKENS))
        times.append(time.perf_counter())
    finally:
        worker.close()
    parts = [after - before for before, after in zip(times, times[1:], strict=False)]
    return Start(dict(zip(PARTS, [*parts, times[-1] - times[0]], strict=True)), resident, version)


def figures(starts: list[Start], dropped: Counter[str]) -> dict[str, Any]:
    return {
        **counts(len(starts), dropped),
        "resident_share_before": summarise(start.resident_share for start in starts),
        **{f"{part}_seconds": summarise(start.seconds[part] for start in starts) for part in PARTS},
    }


def files_of(checkpoint: Path) -> Iterator[Path]:
    """Everything below a checkpoint, what baselines convert it to included; or the file itself."""
    if checkpoint.is_file():
        yield checkpoint
    yield from (file for file in sorted(checkpoint.rglob("*")) if file.is_file())


def drop(checkpoint: Path) -> None:
    """Ask the system to forget a checkpoint's files; what is not written yet has to be first."""
    for file in files_of(checkpoint):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(checkpoint: Path) -> None:
    """Have the system hold a checkpoint's files, as far as memory goes."""
    if resident_share(checkpoint) == 1:
        return
    for file in files_of(checkpoint):
        with file.open("rb", buffering=0) as opened:
            while opened.read(1 << 24):
                pass


def resident_share(checkpoint: Path) -> float:
    """How much of a checkpoint's files the system holds in memory, from 0 to 1."""
    pages = resident = 0
    for file in files_of(checkpoint):
        size = file.stat().st_size
        if size:
            held = resident_pages(file, size)
            pages, resident = pages + len(held), resident + sum(byte & 1 for byte in held)
    return resident / pages if pages else 0.0


def resident_pages(file: Path, size: int) -> bytes:
    """A byte for each page, whose lowest bit says whether it is resident (mincore(2))."""
    library = ctypes.CDLL(None, use_errno=True)
    held = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), size, access=mmap.ACCESS_COPY) as mapping:
        start = ctypes.c_char.from_buffer(mapping)
        try:
            if library.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), held):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(file))
        finally:
            del start
    return held.raw

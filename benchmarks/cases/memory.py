"""Peak memory of loading a checkpoint and decoding, against the plan and baselines, a process each.

    python -m tools.random_checkpoint 8b CHECKPOINT
    python -m benchmarks memory --checkpoint CHECKPOINT --output benchmarks/results/DEVICE/memory-8b.json

Two peaks are reported. ``peak_resident_bytes`` is the kernel's own (VmHWM) and has everything, pages of
mapped files too, which the kernel may drop at any time; ``peak_anonymous_bytes`` (RssAnon, looked at every
few milliseconds) has what cannot be dropped. ``limit_bytes`` is what ours plans, weights and cache, and 1 GB;
baselines state no plan.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import click

from benchmarks.options import SPEED, Arguments, print_figures, runtime_options, take_arguments
from benchmarks.result_file import describe_checkpoint, describe_run, write_report
from benchmarks.samples import figures, sample_in_turn
from benchmarks.workers import Variant, started_workers
from benchmarks.workloads import Decode, Setting

DEFAULT_VARIANTS = ("adept-fast:int4", "adept-fast:int8")
ALLOWANCE = 1_000_000_000  # beside weights and cache: Python, torch, and working memory
INTERVAL = 0.005  # seconds


@click.command()
@runtime_options(DEFAULT_VARIANTS)
@click.option("--context", default=2048, show_default=True, type=click.IntRange(min=64), help="Of the cache.")
@click.option("--steps", default=16, show_default=True, type=click.IntRange(min=4), help="A sample.")
def main(context: int, steps: int, **options: Any) -> None:
    """Measure memory."""
    arguments = take_arguments(options)
    report = describe_run("memory", arguments.samples, arguments.threads)
    report |= {
        "model": describe_checkpoint(arguments.checkpoint),
        "measured": {},
        "absent": {},
        "context": context,
        "allowance_bytes": ALLOWANCE,
    }
    for variant in arguments.variants:
        measured, absent = measure(arguments, variant, context, steps)
        report["measured"] |= measured
        report["absent"] |= absent
    columns = {
        "tokens/s": SPEED["tokens/s"],
        "peak GB": ("peak_resident_bytes", 1e-9, ".2f"),
        "anonymous GB": ("peak_anonymous_bytes", 1e-9, ".2f"),
        "limit GB": ("limit_bytes", 1e-9, ".2f"),
        "load s": ("load_seconds", 1.0, ".2f"),
    }
    print_figures(report["measured"], report["absent"], columns)
    write_report(report, arguments.output)


def measure(
    arguments: Arguments, variant: Variant, context: int, steps: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """Load one format, decode, look at its memory: what was measured, or why it is absent."""
    with (
        MemoryWatch() as watch,
        started_workers(
            [variant],
            pythons=arguments.interpreters,
            threads=arguments.threads,
            started=watch.follow,
        ) as workers,
    ):
        able, unable = workers.load(arguments.checkpoint, threads=arguments.threads, context=context)
        if not able:
            return {}, workers.absent | unable
        (worker,) = able
        after_load = watch.peaks()
        job = Decode(steps, 10.0).job(worker, Setting(None, 1, 16))
        samples, dropped = sample_in_turn({"": job}, arguments.samples, arguments.limits)
        peaks = watch.peaks()
    values = {
        **worker.facts,
        **figures(samples[""], dropped[""]),
        **peaks,
        "peak_resident_bytes_after_load": after_load["peak_resident_bytes"],
    }
    kept = worker.facts.get("resident_bytes")
    if kept is not None:
        values["limit_bytes"] = kept["weights"] + kept["cache"] + ALLOWANCE
        values["within_limit"] = peaks["peak_resident_bytes"] <= values["limit_bytes"]
    return {str(variant): values}, {}


class MemoryWatch:
    """Follows a process's anonymous memory, from outside, so that it costs that process nothing."""

    def __init__(self) -> None:
        self._pid: int | None = None
        self._anonymous = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def follow(self, pid: int) -> None:
        self._pid = pid

    def peaks(self) -> dict[str, int]:
        assert self._pid is not None
        resident = status_bytes(self._pid, "VmHWM")
        return {"peak_resident_bytes": resident, "peak_anonymous_bytes": self._anonymous}

    def _look(self) -> None:
        while not self._stop.wait(INTERVAL):
            if self._pid is not None:
                self._anonymous = max(self._anonymous, status_bytes(self._pid, "RssAnon"))


def status_bytes(pid: int, name: str) -> int:
    """An entry of /proc/PID/status, which is in kB there; 0 once the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":")), 0)

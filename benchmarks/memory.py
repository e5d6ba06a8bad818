"""Peak memory of loading a checkpoint and decoding, against the plan and against rivals, a process for each.

    python tools/random_checkpoint.py 8b CHECKPOINT
    python benchmarks/memory.py --checkpoint CHECKPOINT --output benchmarks/results/DEVICE/memory-8b.json

Two peaks are reported. ``peak_resident_bytes`` is the kernel's own (VmHWM) and has everything, pages of
mapped files too, which the kernel may drop at any time; ``peak_anonymous_bytes`` (RssAnon, looked at every
few milliseconds) has what cannot be dropped. ``limit_bytes`` is what ours plans, weights and cache, and 1 GB;
rivals state no plan.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import click
from arguments import Arguments, benchmark_options, print_figures, take_arguments
from contest import Contestant, contest, figures, sample_in_turn
from decode import DecodeMeasure, prompt_ids
from harness import describe_checkpoint, describe_run, table, write_report

CONTESTANTS = ("adept-fast:int4", "adept-fast:int8")
ALLOWANCE = 1_000_000_000  # beside weights and cache: Python, torch, and working memory
INTERVAL = 0.005  # seconds


@click.command()
@benchmark_options(CONTESTANTS)
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
    for contestant in arguments.contestants:
        measured, absent = measure(arguments, contestant, context, steps)
        report["measured"] |= measured
        report["absent"] |= absent
    print_figures(report["measured"], report["absent"])
    print_memory(report["measured"])
    write_report(report, arguments.output)


def measure(
    arguments: Arguments, contestant: Contestant, context: int, steps: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """Load one format, decode, look at its memory: what was measured, or why it is absent."""
    with (
        MemoryWatch() as watch,
        contest(
            [contestant],
            arguments.checkpoint,
            pythons=arguments.pythons,
            threads=arguments.threads,
            context=context,
            started=watch.follow,
        ) as entered,
    ):
        if entered.absent:
            return {}, entered.absent
        (worker,) = entered.workers
        after_load = watch.peaks()
        decode = DecodeMeasure([prompt_ids(16)], steps, 10.0)
        samples, dropped = sample_in_turn({"": (worker, decode)}, arguments.samples, arguments.limits)
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
    return {str(contestant): values}, {}


def print_memory(measured: dict[str, dict[str, Any]]) -> None:
    names = {
        "peak": ("peak_resident_bytes", 1e9),
        "anonymous": ("peak_anonymous_bytes", 1e9),
        "limit": ("limit_bytes", 1e9),
        "load s": ("load_seconds", 1.0),
    }
    rows = [
        [name, *(f"{values[key] / unit:.2f}" if key in values else "-" for key, unit in names.values())]
        for name, values in measured.items()
    ]
    if rows:
        click.echo("\n" + table(["GB", *names], rows))


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


if __name__ == "__main__":
    main()

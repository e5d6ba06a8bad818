"""This tree against another commit of the repository: decode, prefill, batch and load, interleaved, on a CPU.

    python -m benchmarks compare --against a87b3ae --model small --output compare.json

The other commit is checked out in ``build/commits`` and stays there, since its extension may take minutes to
build; it gets this tree's extension, which its loader uses if the sources are equal. Both trees run the same
worker, which calls public names only, in processes that take turns sample by sample. ``times_as_fast`` is the
other's time over this tree's: figures of the rounds, so a range around 1 is no difference.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.models import random_model
from benchmarks.options import Arguments, cell, sampling_options, take_arguments
from benchmarks.result_file import describe_checkpoint, describe_run, git, table, write_report
from benchmarks.samples import Job, figures, sample_in_turn, speedup
from benchmarks.workers import OURS, ROOT, Variant, Worker, WorkerError
from benchmarks.workloads import Decode, Prefill, Setting, Workload, prompt_ids
from tools.random_checkpoint import PRESETS

THIS = "this tree"
FORMATS = ("float16", "bfloat16", "int8", "int4")
STEPS = 24
MEASURES: dict[str, tuple[Workload, Setting]] = {
    "decode": (Decode(STEPS, 1.0), Setting(None, 1, 16)),
    "batch of 4": (Decode(STEPS, 1.0), Setting(None, 4, 16)),
    "prefill": (Prefill(), Setting(None, 1, 512)),
}
CONTEXT, BATCH = 512 + STEPS + 1, 4  # room for all of them
LOAD = "load and first token"


@dataclass(frozen=True)
class Tree:
    """A checkout whose adept_fast is timed. ``folder`` has benchmarks alone, so that both run this tree's."""

    name: str
    packages: Path
    folder: Path

    def worker(self, variant: Variant, threads: int) -> Worker:
        worker = Worker(
            variant, sys.executable, threads, module="public_api", folder=self.folder, packages=self.packages
        )
        source = Path(worker.call("hello")["imported_from"])
        if not source.is_relative_to(self.packages):
            worker.close()
            raise WorkerError(f"adept_fast was imported from {source}; expected it from {self.packages}")
        return worker

    def loaded_worker(self, checkpoint: Path, variant: Variant, threads: int) -> Worker:
        worker = self.worker(variant, threads)
        worker.load(checkpoint, threads=threads, context=CONTEXT, batch=BATCH)
        if reason := worker.facts["without_extension"]:
            worker.close()
            raise WorkerError(f"{self.name} has no extension: {reason}")
        return worker

    def start(self, checkpoint: Path, variant: Variant, threads: int) -> dict[str, Any]:
        """A sample of a new process, from its start to the first token."""
        started = time.perf_counter()
        worker = self.loaded_worker(checkpoint, variant, threads)
        try:
            worker.call("prefill", prompt=prompt_ids(16))
            return {"seconds_per_step": time.perf_counter() - started}
        finally:
            worker.close()


@click.command()
@click.option("--against", required=True, metavar="COMMIT", help="What git calls the other commit.")
@click.option("--model", default="small", show_default=True, type=click.Choice(list(PRESETS)))
@click.option(
    "--checkpoint",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="In place of random weights.",
)
@click.option(
    "--format",
    "formats",
    multiple=True,
    default=FORMATS,
    show_default=True,
    type=click.Choice(["float32", *FORMATS]),
)
@sampling_options(samples=9)
def main(against: str, model: str, formats: tuple[str, ...], **options: Any) -> None:
    """Time this tree and another commit, in turn."""
    arguments = take_arguments(options)
    commit = git("rev-parse", "--verify", "--quiet", "--short", f"{against}^{{commit}}")
    if not commit:
        raise click.BadParameter(f"--against is {against!r}; expected a commit of this repository")
    report = describe_run("compare", arguments.samples, arguments.threads)
    report |= {"against": commit, "measured": {}, "times_as_fast": {}}
    with tempfile.TemporaryDirectory() as temporary, both_trees(commit) as trees:
        given = arguments.checkpoint != Path()
        checkpoint = arguments.checkpoint if given else random_model(model, 0.5, Path(temporary))
        report["model"] = describe_checkpoint(checkpoint)
        for format in formats:
            compare(arguments, trees, checkpoint, Variant(OURS, format), report)
    rows = [
        [
            name,
            *(
                cell(report["measured"][f"{name}, {tree.name}"].get("milliseconds_per_step"))
                for tree in trees
            ),
            *(cell(found and found[key], form=".3f") for key in ("speedup", "at_equal_bandwidth")),
        ]
        for name, found in report["times_as_fast"].items()
    ]
    names = [f"{tree.name}, ms" for tree in trees]
    click.echo(table(["median (p10 to p90)", *names, "times as fast", "at equal bandwidth"], rows))
    write_report(report, arguments.output)


@contextmanager
def both_trees(commit: str) -> Iterator[list[Tree]]:
    """This one and that of the commit."""
    other = ROOT / "build" / "commits" / commit
    if not other.exists():
        command = ["git", "worktree", "add", "--quiet", "--force", "--detach", str(other), commit]
        subprocess.run(command, cwd=ROOT, check=True)
    for file in (ROOT / "adept_fast").glob("_C.*"):
        if file.suffix != ".pyi" and not (other / "adept_fast" / file.name).exists():
            shutil.copy2(file, other / "adept_fast")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "benchmarks").symlink_to(ROOT / "benchmarks")
        yield [Tree(THIS, ROOT, Path(folder)), Tree(commit, other, Path(folder))]


def compare(
    arguments: Arguments, trees: list[Tree], checkpoint: Path, variant: Variant, report: dict[str, Any]
) -> None:
    """Sample one format in both trees; the figures go into the report."""
    threads, workers = arguments.threads, []
    jobs: dict[str, Job] = {}
    tokens: dict[str, int] = {}
    try:
        for tree in trees:
            workers.append(tree.loaded_worker(checkpoint, variant, threads))
        for measure, (workload, setting) in MEASURES.items():
            for tree, worker in zip(trees, workers, strict=True):
                name = f"{variant} {measure}, {tree.name}"
                jobs[name] = workload.job(worker, setting)
                tokens[name] = workload.tokens_per_step(setting)
        samples, dropped = sample_in_turn(jobs, arguments.samples, arguments.limits)
    finally:
        for worker in workers:
            worker.close()
    # Alone, since each start takes a process's memory for itself.
    starts = {
        f"{variant} {LOAD}, {tree.name}": Job(functools.partial(tree.start, checkpoint, variant, threads))
        for tree in trees
    }
    taken, lost = sample_in_turn(starts, arguments.samples, arguments.limits)
    samples, dropped = samples | taken, dropped | lost
    for name in samples:
        report["measured"][name] = figures(samples[name], dropped[name], tokens.get(name, 1))
    for measure in (*MEASURES, LOAD):
        ours, theirs = (samples[f"{variant} {measure}, {tree.name}"] for tree in trees)
        report["times_as_fast"][f"{variant} {measure}"] = speedup(ours, theirs)

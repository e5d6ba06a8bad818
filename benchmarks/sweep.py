"""Times a workload in every setting: each share of inactive neurons, batch and context, of every variant."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch

from adept_fast.memory.bandwidth import BandwidthProbe
from benchmarks.options import Arguments, print_figures, print_speedups
from benchmarks.result_file import describe_checkpoint, describe_run, write_report
from benchmarks.samples import Job, Samples, figures, sample_in_turn, speedups
from benchmarks.workers import OURS, Variant, Worker, Workers, started_workers, warm_up
from benchmarks.workloads import Setting, Workload


@dataclass(frozen=True)
class Plan:
    """Each checkpoint, by its share of inactive neurons, with each batch and context.

    ``context_name`` names a context in a row. ``together``: all settings of a checkpoint take turns, with
    room for the largest; otherwise one setting is timed after the other.
    """

    workload: Workload
    device: torch.device
    checkpoints: dict[float | None, Path]
    batches: tuple[int, ...] = (1,)
    contexts: tuple[int, ...] = (16,)
    context_name: str = "context {}"
    together: bool = False

    @property
    def in_turn(self) -> bool:
        """Whether the variants take turns, sample by sample; a GPU has no room for several."""
        return self.device.type == "cpu"

    def groups(self, zeros: float | None) -> list[list[Setting]]:
        """Settings that take turns. The largest comes first: with its room the others need no new load."""
        settings = [Setting(zeros, batch, context) for batch in self.batches for context in self.contexts]
        if self.together:
            return [settings]
        return [[setting] for setting in sorted(settings, key=lambda each: -each.batch * each.context)]

    def row(self, variant: Variant, setting: Setting) -> str:
        """``adept-fast:int4, 90% zeros, batch 4, context 2048``: what differs between settings is named."""
        parts = [str(variant)]
        if len(self.checkpoints) > 1:
            parts.append(f"{setting.zeros:.0%} zeros")
        if len(self.batches) > 1:
            parts.append(f"batch {setting.batch}")
        if len(self.contexts) > 1:
            parts.append(self.context_name.format(setting.context))
        return ", ".join(parts)


@dataclass
class Found:
    """The results of a sweep, row by row."""

    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    samples: dict[str, Samples] = field(default_factory=dict)
    _settings: dict[str, Setting] = field(default_factory=dict)

    def add(
        self,
        row: str,
        worker: Worker,
        setting: Setting,
        samples: Samples,
        dropped: Counter[str],
        tokens_per_step: int,
    ) -> None:
        named = {"contestant": str(worker.variant), **setting.facts()}
        self.measured[row] = worker.facts | figures(samples, dropped, tokens_per_step) | named
        self.samples[row], self._settings[row] = samples, setting

    def rows(self) -> dict[str, dict[str, Any]]:
        """In the order of zeros, batch, and context, and then as the variants were named."""

        def key(row: str) -> tuple[float, int, int]:
            setting = self._settings[row]
            return (setting.zeros or 0.0, setting.batch, setting.context)

        return {row: self.measured[row] for row in sorted(self.measured, key=key)}

    def reasons(self) -> dict[str, str]:
        """Which rows are missing, and why; a variant by its name alone if it has no row at all."""
        by_variant: dict[str, list[str]] = {}
        for row, reason in self.absent.items():
            by_variant.setdefault(row.partition(",")[0], []).append(reason)
        short = {
            name: reasons[0]
            for name, reasons in by_variant.items()
            if len(set(reasons)) == 1 and not any(row.partition(",")[0] == name for row in self.measured)
        }
        rest = {row: reason for row, reason in self.absent.items() if row.partition(",")[0] not in short}
        return short | rest

    def speedups(self) -> dict[str, Any]:
        """Of every row of ours, against the baselines' rows with its batch and context."""
        found: dict[str, Any] = {}
        for row in self.rows():
            if row.startswith(OURS):
                others = {other: self.samples[other] for other in self._baselines_of(self._settings[row])}
                found |= speedups({row: self.samples[row], **others}, OURS)
        return found

    def _baselines_of(self, setting: Setting) -> list[str]:
        """Those with its zeros; if a baseline ran with one share only, that row."""
        alike = {
            row: other
            for row, other in self._settings.items()
            if not row.startswith(OURS) and (other.batch, other.context) == (setting.batch, setting.context)
        }
        return [row for row, other in alike.items() if other.zeros == setting.zeros] or list(alike)


def sweep(arguments: Arguments, plan: Plan, keep: Callable[[Found], None] = lambda found: None) -> Found:
    """Run all of it. A setting without room in memory is absent, and the rest goes on.

    ``keep`` gets the results so far after every group of settings, since a run may be stopped.
    """
    found, probe = Found(), BandwidthProbe(plan.device)
    for at, (zeros, checkpoint) in enumerate(plan.checkpoints.items()):
        vocab = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        for variants in loaded_together(arguments.variants, plan.in_turn, at == 0):
            with started_workers(
                variants, pythons=arguments.interpreters, threads=arguments.threads
            ) as workers:
                found.absent |= workers.absent
                found.versions |= workers.versions
                for settings in plan.groups(zeros):
                    jobs = _prepare(plan, checkpoint, settings, workers, vocab, arguments, found)
                    _sample(plan, jobs, arguments, probe, found)
                    keep(found)
    return found


def loaded_together(variants: tuple[Variant, ...], in_turn: bool, is_first: bool) -> Iterator[list[Variant]]:
    """All, or one after the other: then the baselines, which read all weights, in the first share only."""
    if in_turn:
        yield list(variants)
    else:
        yield from ([each] for each in variants if is_first or each.runtime == OURS)


@dataclass(frozen=True)
class _Prepared:
    worker: Worker
    setting: Setting
    job: Job


def _prepare(
    plan: Plan,
    checkpoint: Path,
    settings: list[Setting],
    workers: Workers,
    vocab: int,
    arguments: Arguments,
    found: Found,
) -> dict[str, _Prepared]:
    """Load every variant for these settings: row → its job."""
    able, unable = workers.load(
        checkpoint,
        threads=arguments.threads,
        context=plan.workload.room(max(setting.context for setting in settings)),
        batch=max(setting.batch for setting in settings),
        device=plan.device.type,
    )
    for setting in settings:
        found.absent |= {plan.row(Variant.parse(name), setting): reason for name, reason in unable.items()}
    return {
        plan.row(worker.variant, setting): _Prepared(
            worker, setting, plan.workload.job(worker, setting, vocab)
        )
        for worker in able
        for setting in settings
    }


def _sample(
    plan: Plan, prepared: dict[str, _Prepared], arguments: Arguments, probe: BandwidthProbe, found: Found
) -> None:
    jobs = {row: each.job for row, each in prepared.items()}
    found.absent |= warm_up(jobs)
    if not jobs:
        return
    samples, dropped = sample_in_turn(jobs, arguments.samples, arguments.limits, probe, is_warm=True)
    for row in samples:
        worker, setting = prepared[row].worker, prepared[row].setting
        tokens = plan.workload.tokens_per_step(setting)
        found.add(row, worker, setting, samples[row], dropped[row], tokens)


def run_sweep(
    benchmark: str, arguments: Arguments, plan: Plan, extend: Callable[[Found], dict[str, Any]]
) -> dict[str, Any]:
    """Sweep, print, and write the report, which is returned; ``extend`` gives the keys of the benchmark."""
    run = describe_run(benchmark, arguments.samples, arguments.threads, plan.device)
    model = describe_checkpoint(next(iter(plan.checkpoints.values())))

    def report(found: Found) -> dict[str, Any]:
        return run | {
            "versions": run["versions"] | {"rivals": found.versions},
            "model": model,
            "measured": found.rows(),
            "absent": found.reasons(),
            "ratios": found.speedups(),
            **extend(found),
        }

    def keep(found: Found) -> None:
        if found.measured:
            write_report(report(found), arguments.output)

    found = sweep(arguments, plan, keep)
    if not found.measured:
        raise click.ClickException(f"nobody can take part: {found.absent}")
    result = report(found)
    print_figures(result["measured"], result["absent"])
    print_speedups(result["ratios"])
    write_report(result, arguments.output)
    return result

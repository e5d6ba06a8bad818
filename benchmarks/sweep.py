"""Runs a measurement in every setting: each share of zeros, batch and context, of everyone who takes part."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from arguments import Arguments
from contest import (
    OURS,
    Contest,
    Contestant,
    Measure,
    Probe,
    Sample,
    Worker,
    enter,
    figures,
    ratios,
    sample_in_turn,
    warm_up,
)

from adept_fast.memory.bandwidth import BandwidthProbe

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))


@dataclass(frozen=True)
class Setting:
    """``zeros`` is None of a checkpoint that was there before."""

    zeros: float | None
    batch: int
    context: int

    def facts(self) -> dict[str, Any]:
        return {"zeros": self.zeros, "batch": self.batch, "context": self.context}


@dataclass(frozen=True)
class Sweep:
    """What is to be run: each checkpoint, by its share of zeros, with each batch and context."""

    device: torch.device
    checkpoints: dict[float | None, Path]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    steps: int
    longest_sample: float

    @property
    def in_turn(self) -> bool:
        """Whether all take turns, sample by sample; a GPU has no room for several of them."""
        return self.device.type == "cpu"

    def settings(self, zeros: float | None) -> list[Setting]:
        """The largest first: who has room for it need not load again for the others."""
        all_of_them = [Setting(zeros, batch, context) for batch in self.batches for context in self.contexts]
        return sorted(all_of_them, key=lambda setting: -setting.batch * setting.context)

    def row(self, contestant: Contestant, setting: Setting) -> str:
        """``adept-fast:int4, 90% zeros, batch 4, context 2048``: what differs between settings is named."""
        parts = [str(contestant)]
        if len(self.checkpoints) > 1:
            parts.append(f"{setting.zeros:.0%} zeros")
        if len(self.batches) > 1:
            parts.append(f"batch {setting.batch}")
        if len(self.contexts) > 1:
            parts.append(f"context {setting.context}")
        return ", ".join(parts)


@dataclass
class Found:
    """What came of a sweep, row by row."""

    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    _samples: dict[str, list[Sample | None]] = field(default_factory=dict)
    _settings: dict[str, Setting] = field(default_factory=dict)

    def add(
        self, row: str, worker: Worker, setting: Setting, samples: list[Sample | None], dropped: Any
    ) -> None:
        named = {"contestant": str(worker.contestant), **setting.facts()}
        self.measured[row] = worker.facts | figures(samples, dropped, setting.batch) | named
        self._samples[row], self._settings[row] = samples, setting

    def rows(self) -> dict[str, dict[str, Any]]:
        """In the order of zeros, batch, and context, and then as contestants were named."""

        def place(row: str) -> tuple[float, int, int]:
            setting = self._settings[row]
            return (setting.zeros or 0.0, setting.batch, setting.context)

        return {row: self.measured[row] for row in sorted(self.measured, key=place)}

    def who_is_absent(self) -> dict[str, str]:
        """Whose rows are missing, and why: a contestant by its name alone where it is never there."""
        of_contestant: dict[str, list[str]] = {}
        for row, reason in self.absent.items():
            of_contestant.setdefault(row.partition(",")[0], []).append(reason)
        short = {
            name: reasons[0]
            for name, reasons in of_contestant.items()
            if len(set(reasons)) == 1 and not any(row.partition(",")[0] == name for row in self.measured)
        }
        rest = {row: reason for row, reason in self.absent.items() if row.partition(",")[0] not in short}
        return short | rest

    def ratios(self) -> dict[str, Any]:
        """Of every row of ours, against the rivals' rows of its batch and context."""
        found: dict[str, Any] = {}
        for row in self.rows():
            setting = self._settings[row]
            if row.startswith(OURS):
                rivals = {other: self._samples[other] for other in self._rivals_of(setting)}
                found |= ratios({row: self._samples[row], **rivals})
        return found

    def _rivals_of(self, setting: Setting) -> Iterator[str]:
        """Those with its zeros; where a rival was run with one share only, that row."""
        size = (setting.batch, setting.context)
        alike = {
            row: other
            for row, other in self._settings.items()
            if not row.startswith(OURS) and (other.batch, other.context) == size
        }
        same = [row for row, other in alike.items() if other.zeros == setting.zeros]
        yield from same or alike


def sweep(
    arguments: Arguments,
    plan: Sweep,
    measure_of: Callable[[Setting, int], Measure],
    keep: Callable[[Found], None] = lambda found: None,
) -> Found:
    """Run all of it. What a machine has no room for is named as absent, and the rest goes on.

    ``measure_of`` makes a measurement for a setting and a size of vocabulary. ``keep`` gets what there is so
    far after every setting, since a run may be stopped.
    """
    found = Found()
    probe = BandwidthProbe(plan.device)
    for zeros, checkpoint in plan.checkpoints.items():
        is_first = zeros == next(iter(plan.checkpoints))
        vocab = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        for group in groups(arguments.contestants, plan.in_turn, is_first):
            with enter(group, pythons=arguments.pythons, threads=arguments.threads) as entered:
                found.absent |= entered.absent
                found.versions |= entered.versions
                for setting in plan.settings(zeros):
                    measure = measure_of(setting, vocab)
                    take_setting(arguments, plan, checkpoint, setting, entered, measure, probe, found)
                    keep(found)
    return found


def groups(contestants: list[Contestant], in_turn: bool, is_first: bool) -> Iterator[list[Contestant]]:
    """Who is loaded at the same time."""
    if in_turn:
        yield contestants
    else:
        yield from ([each] for each in contestants if is_first or each.rival == OURS)


def take_setting(
    arguments: Arguments,
    plan: Sweep,
    checkpoint: Path,
    setting: Setting,
    entered: Contest,
    measure: Measure,
    probe: Probe,
    found: Found,
) -> None:
    """Load everyone for a setting and sample them."""
    able, unable = entered.load(
        checkpoint,
        threads=arguments.threads,
        context=setting.context + plan.steps + 1,
        batch=setting.batch,
        device=plan.device.type,
    )
    for contestant, reason in unable.items():
        found.absent[plan.row(Contestant.parse(contestant), setting)] = reason
    jobs = {plan.row(worker.contestant, setting): (worker, measure) for worker in able}
    workers = {row: worker for row, (worker, _) in jobs.items()}
    found.absent |= warm_up(jobs)
    if not jobs:
        return
    samples, dropped = sample_in_turn(jobs, arguments.samples, arguments.limits, probe, is_warm=True)
    for row in samples:
        found.add(row, workers[row], setting, samples[row], dropped[row])

"""The stages of ``gpu-check`` that time: programs whose results are put into its report.

Both write their results anew after each figure, so that one that is stopped by its limit leaves what it has.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.stages import ROOT, Ended, Outcome, run_process

PROGRAM = ROOT / "build" / "step"
OURS = ("adept-fast:float16", "adept-fast:fp8", "adept-fast:int4")
SAMPLES = 5  # of a decode step, each of some steps; the step program replays a graph twice as often
# Seconds. The compiled ones compile all layers.
BASELINES = {
    "eager:float16": 60,
    "eager-compiled-layer:float16": 90,
    "transformers:float16": 60,
    "eager-compiled:float16": 180,
    "transformers-compiled:float16": 180,
}
PROMPTS = (128, 2048, 16384)  # tokens
OF_PROMPTS = ("adept-fast:float16", "adept-fast:int4", "transformers:float16")
# For each length, it compiles all layers.
COMPILED_PROMPTS, COMPILED_LAYERS = "transformers-compiled:float16", 9


@dataclass(frozen=True)
class Case:
    """One operator, or all of a ``layer`` or a ``step`` in turn, in one setting."""

    operator: str
    tokens: int
    format: str = "float16"  # of the weights, or of the cache
    zeros: float = 0.0  # the share of inactive neurons
    positions: int = 0
    filter: str = ""  # of sample
    layout: str = "row_major"  # of the matrices, or tiles, or one: tiles, and one kernel for all layers

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Case:
        """Of an entry in the results of ``benchmarks/step``."""
        return cls(
            entry["operator"],
            entry["tokens"],
            entry["format"],
            entry["sparsity_percent"] / 100,
            entry["positions"],
            entry["sampling"] if entry["operator"] == "sample" else "",
            entry.get("layout", "row_major"),
        )

    @property
    def setting(self) -> str:
        """Everything but the tokens."""
        zeros = f"{self.zeros:.0%} zeros" if self.operator in ("mlp", "layer", "step") else ""
        positions = f"{self.positions} positions" if self.positions else ""
        layout = {"row_major": "", "tiles": "tiles", "one": "tiles, one kernel"}[self.layout]
        return ", ".join(filter(None, (self.operator, self.format, layout, zeros, positions, self.filter)))

    @property
    def name(self) -> str:
        return f"{self.setting}, {self.tokens} token{'s' if self.tokens > 1 else ''}"


class StepProgram:
    """Times a step and its operators: ``measured`` gets its figures by case, ``step`` the rest."""

    def __init__(self, report: dict[str, Any]) -> None:
        self._report = report

    def __call__(self, seconds: float) -> Outcome:
        if not os.access(PROGRAM, os.X_OK):
            return Outcome(None, "skipped: there is no build/step that can be run; make gpu-build makes it")
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / "step.json"
            command = [str(PROGRAM), "--quick", "--commit", self._report["commit"], "--json", str(written)]
            ended = run_process(command, seconds)
            taken = _read(written)
        entries = taken.pop("measured", [])
        self._report["step"] = taken
        self._report["measured"] |= {Case.of(entry).name: entry for entry in entries}
        failed = [Case.of(entry).name for entry in entries if "failed" in entry]
        said = f"{len(entries)} cases"
        if failed:
            return Outcome(False, f"{said}, {len(failed)} of them failed: {'; '.join(failed)}", ended.lines)
        return _as_many_as_fit(ended, said, len(entries))


class Runtimes:
    """Times runtimes at the 8B's shapes; the report of ``benchmark`` stands under that, by ``name``."""

    benchmark = ""

    def __init__(
        self, report: dict[str, Any], name: str, variants: Sequence[str], options: Sequence[str]
    ) -> None:
        self._report = report
        self._name = name
        self._has_ours = any(variant in OURS for variant in variants)
        self._options = [*options, *(part for variant in variants for part in ("--runtime", variant))]

    def __call__(self, seconds: float) -> Outcome:
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / "found.json"
            ended = run_process([*self.command, "--output", str(written)], seconds)
            taken = _read(written)
        measured, absent = taken.get("measured", {}), taken.get("absent", {})
        if taken:
            self._report.setdefault(self.benchmark, {})[self._name] = taken
        if not measured and not self._has_ours:  # that it is not installed is no fault of ours
            return Outcome(None, ended.outcome(ended.lines[-1] if ended.lines else "").said, ended.lines)
        said = f"{len(measured)} settings" + (f"; absent: {absent}" if absent else "")
        if any(row.startswith("adept-fast:") or self.benchmark == "decode" for row in absent):
            return Outcome(False, said, ended.lines)
        return _as_many_as_fit(ended, said, len(measured))

    @property
    def command(self) -> list[str]:
        common = ["--model", "8b", "--device", "cuda", "--threads", "8", "--attempts", "2"]
        return [sys.executable, "-m", "benchmarks", self.benchmark, *common, *self._options]


class Decode(Runtimes):
    """Decode steps, as the committed results were measured.

    ``runtime`` is adept-fast, for all of our formats, or one of BASELINES.
    """

    benchmark = "decode"

    def __init__(self, report: dict[str, Any], runtime: str) -> None:
        is_ours = runtime not in BASELINES
        options = ["--batch", "1", "--context", "128", "--samples", str(SAMPLES), "--steps", "64"]
        options += ["--longest-sample", "0.5", "--zeros", "0,90" if is_ours else "0"]
        super().__init__(report, runtime, OURS if is_ours else (runtime,), options)


class Prefill(Runtimes):
    """Times to the first token of PROMPTS, as shares of the rate of torch's GEMM."""

    benchmark = "prefill"

    def __init__(self, report: dict[str, Any], name: str, layers: int | None = None) -> None:
        lengths = [part for tokens in PROMPTS for part in ("--prompt-tokens", str(tokens))]
        fewer = [] if layers is None else ["--layers", str(layers)]
        variants = OF_PROMPTS if name == "adept-fast" else (name,)
        super().__init__(report, name, variants, ["--samples", "3", *lengths, *fewer])


class Layouts(Runtimes):
    """Decode steps in each layout of the matrices, by each kind of kernels."""

    benchmark = "layouts"

    def __init__(self, report: dict[str, Any]) -> None:
        super().__init__(report, "adept-fast", OURS, [])

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "benchmarks", self.benchmark, "--model", "8b", "--device", "cuda"]


def _as_many_as_fit(ended: Ended, said: str, count: int) -> Outcome:
    """A program measures the most valuable first, so what the limit cuts off is no failure; no figure is."""
    if ended.ran_out and count:
        return Outcome(True, f"{said}, as many as fit")
    return ended.outcome(said)


def _read(path: Path) -> dict[str, Any]:
    """A program's results; empty if it wrote none, or was stopped while it wrote."""
    try:
        taken: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return taken

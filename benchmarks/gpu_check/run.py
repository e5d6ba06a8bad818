"""A run of ``gpu-check``: its stages in the order of their value, and its report.

Importing this loads the extension, so it has to be there before.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check.extension import USE_SECONDS, FoundExtension
from benchmarks.gpu_check.programs import (
    BASELINES,
    COMPILED_LAYERS,
    COMPILED_PROMPTS,
    SAMPLES,
    Decode,
    Layouts,
    Prefill,
    StepProgram,
)
from benchmarks.gpu_check.stages import Outcome, Stage, model_tests, operator_tests, sanitize_tests
from benchmarks.machine import describe_gpu
from benchmarks.result_file import describe_run, write_report

BASELINES_MINUTES = 13.0
LAYOUTS_MINUTES = 3.0


def check_stages(report: dict[str, Any], *, sanitize: bool = False) -> list[Stage]:
    """In the order of their value; the sanitizers take what time is left."""
    stages = [
        Stage("operators", 30, 10, operator_tests),
        Stage("graphs and model", 80, 10, model_tests),
        Stage("step", 30, 5, StepProgram(report)),
        Stage("decode", 90, 30, Decode(report, "adept-fast")),
        Stage("prefill", 45, 20, Prefill(report, "adept-fast")),
    ]
    if sanitize:
        stages += [Stage(tool, 120, 30, sanitize_tests(tool)) for tool in ("memcheck", "racecheck")]
    return stages


def baseline_stages(report: dict[str, Any]) -> list[Stage]:
    """One for each of the others, the compiled ones with the time that compiling all layers takes."""
    stages = [Stage(name, seconds, 20, Decode(report, name)) for name, seconds in BASELINES.items()]
    compiled = Prefill(report, COMPILED_PROMPTS, COMPILED_LAYERS)
    return [*stages, Stage(f"prefill {COMPILED_PROMPTS}", 180, 30, compiled)]


def layout_stages(report: dict[str, Any]) -> list[Stage]:
    """Steps and operators of matrices in each layout."""
    return [Stage("step", 30, 5, StepProgram(report)), Stage("layouts", 130, 30, Layouts(report))]


def limit_seconds(stages: Iterable[Stage]) -> float:
    """The limit of a run of these, with an extension that was carried along."""
    return USE_SECONDS + sum(stage.longest for stage in stages)


class Check:
    """The report so far, and the file that it is written to."""

    def __init__(self, report: dict[str, Any], output: Path) -> None:
        self.report = report
        self._output = output

    def run(self, stages: Iterable[Stage], deadline: float) -> None:
        """All stages that fit before that time of the monotonic clock."""
        for stage in stages:
            began = time.monotonic()
            allowed = stage.seconds(deadline - began)
            outcome = Outcome(None, "interrupted")
            try:
                outcome = stage.run(allowed) if allowed else Outcome(None, "not begun: no time was left")
            finally:
                self.keep(stage.name, outcome, time.monotonic() - began)

    def keep(self, name: str, outcome: Outcome, seconds: float) -> None:
        """Note how a stage went; write and print it."""
        verdict = {True: "passed", False: "failed", None: "not checked"}[outcome.passed]
        entry: dict[str, Any] = {"verdict": verdict, "said": outcome.said, "seconds": round(seconds, 1)}
        if outcome.last_lines:
            entry["last_lines"] = outcome.last_lines
        self.report["stages"][name] = entry
        self.write()
        say(*outcome.last_lines, f"{name}: {verdict} in {seconds:.0f} s: {outcome.said}")

    def write(self) -> None:
        write_report(self.report, self._output)

    @property
    def passed(self) -> bool:
        return all(stage["verdict"] != "failed" for stage in self.report["stages"].values())


def new_report(name: str, commit: str | None, found: FoundExtension) -> dict[str, Any]:
    """Without stages and figures."""
    gpu = describe_gpu(torch.device("cuda", 0))
    report = describe_run(name, SAMPLES, torch.get_num_threads())
    report["commit"] = commit or report["commit"] or "unknown"
    report["versions"] |= {
        "cuda of torch": str(torch.version.cuda),
        "nvcc": last_line("nvcc", "--version"),
        "compute-sanitizer": last_line("compute-sanitizer", "--version"),
    }
    return report | found.facts | {"device": gpu["name"], "gpu": gpu, "stages": {}, "measured": {}}


def last_line(*command: str) -> str:
    """The last line that a program prints; empty if it is not installed."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout.strip().splitlines() or [""])[-1]


def say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()

"""A run of ``gpu_check``: its stages in the order of their value, and its report.

Importing this loads the extension, so it has to be built before.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from gpu_check_cases import Case, all_cases, few_cases
from gpu_check_report import ALONE, figure, is_wrong
from gpu_check_stages import Outcome, Stage, model_tests, operator_tests, run_process, sanitize
from harness import describe_run, write_report

SAMPLES = 50  # replays, as gpu_check_timing takes them
MOST_CRASHES = 3  # of processes that time operators
TIMING = str(Path(__file__).with_name("gpu_check_timing.py"))


class Check:
    """What was found so far, and where that is written."""

    def __init__(self, report: dict[str, Any], output: Path) -> None:
        self.report = report
        self._output = output

    def stages(self) -> list[Stage]:
        """In the order of their value."""
        return [
            Stage("operators", 150, 10, operator_tests),
            Stage("timings", 150, 20, Timings(self.report, overlap=True)),
            Stage("model", 60, 15, model_tests),
            Stage("timings without overlap", 60, 20, Timings(self.report, overlap=False)),
            Stage("memcheck", 120, 30, sanitize("memcheck")),
            Stage("racecheck", 120, 30, sanitize("racecheck")),
        ]

    def run(self, deadline: float) -> None:
        """All stages that fit before that time of the monotonic clock."""
        for stage in self.stages():
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


class Timings:
    """A stage that times operators; each figure is in the report as soon as it is there."""

    def __init__(self, report: dict[str, Any], *, overlap: bool) -> None:
        self._cases = list(all_cases() if overlap else few_cases())
        self._overlap = overlap
        self._suffix = "" if overlap else ALONE
        self._report = report
        self._copied = False  # whether the process that runs now has timed its copy

    def __call__(self, seconds: float) -> Outcome:
        deadline = time.monotonic() + seconds
        crashes = 0
        while crashes < MOST_CRASHES:
            self._copied = False
            command = [sys.executable, TIMING, "--from", str(len(self._done()))]
            command += [] if self._overlap else ["--few"]
            variables = {"ADEPT_FAST_OVERLAP": str(int(self._overlap)), "PYTHONUNBUFFERED": "1"}
            left = max(1.0, deadline - time.monotonic())
            ended = run_process(command, left, variables, self.take)
            if ended.code == 0 or ended.ran_out or not self._copied:
                break
            crashes += 1
            if ended.code != 3:  # it did not come to say what failed
                failed = {"number": len(self._done()), "failed": f"the process ended with {ended.code}"}
                self.take(json.dumps(failed))
        done = self._done()
        said = f"{len(done)} of {len(self._cases)} cases"
        if wrong := [case.name for case, entry in done if is_wrong(entry)]:
            return Outcome(False, f"{said}, {len(wrong)} of them wrong: {'; '.join(wrong)}")
        if ended.ran_out and done:  # the rest is of less value, by its order
            return Outcome(True, f"{said}, as many as fit")
        return ended.outcome(said)

    def take(self, line: str) -> None:
        """Keep what a process of timings printed."""
        if not line.startswith("{"):
            return
        taken = json.loads(line)
        if "number" not in taken:
            self._copied = True
            self._report[f"copy{self._suffix}"] = taken
            return
        case = self._cases[taken["number"]]
        speed = self._report[f"copy{self._suffix}"]["copy_bytes_per_second"]
        self._report["measured"][case.name + self._suffix] = figure(case, taken, speed)

    def _done(self) -> list[tuple[Case, dict[str, Any]]]:
        named = ((case, self._report["measured"].get(case.name + self._suffix)) for case in self._cases)
        return [(case, entry) for case, entry in named if entry is not None]


def new_report(commit: str | None) -> dict[str, Any]:
    """Without stages and figures."""
    gpu = describe_gpu()
    report = describe_run("gpu-check", SAMPLES, torch.get_num_threads())
    report["commit"] = commit or report["commit"] or "unknown"
    report["versions"] |= {
        "cuda of torch": str(torch.version.cuda),
        "nvcc": last_line("nvcc", "--version"),
        "compute-sanitizer": last_line("compute-sanitizer", "--version"),
    }
    return report | {"device": gpu["name"], "gpu": gpu, "stages": {}, "measured": {}}


def describe_gpu() -> dict[str, Any]:
    """What a reader of the figures needs to know of the device."""
    device = torch.cuda.get_device_properties(0)
    return {
        "name": device.name,
        "capability": f"{device.major}.{device.minor}",
        "multiprocessors": device.multi_processor_count,
        "memory_bytes": device.total_memory,
        "l2_bytes": device.L2_cache_size,
        "driver": last_line("nvidia-smi", "--id=0", "--query-gpu=driver_version", "--format=csv,noheader"),
    }


def last_line(*command: str) -> str:
    """Of what a program prints; empty where it is not there."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout.strip().splitlines() or [""])[-1]


def say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()

"""Runs tests of the CUDA operators in a process of their own, under a build that looks for mistakes.

By hand, from tests/::

    python -m cuda_on_cpu.sanitized races operators/test_op_mlp.py -k float16
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from cuda_on_cpu import build

TESTS = Path(__file__).resolve().parents[1]

# AddressSanitizer has to be there before everything else, the C++ library at once after it.
PRELOADED: dict[build.Kind, tuple[str, ...]] = {
    "plain": (),
    "address": ("libasan.so", "libstdc++.so"),
    "races": (),
}
FINDINGS = ("ERROR: AddressSanitizer", "runtime error:", "RuntimeError:")


@dataclass(frozen=True)
class Result:
    """What came of a run."""

    passed: bool
    said: str


def run(kind: build.Kind, selection: Sequence[str], thin: bool = True) -> Result:
    """Run pytest with that selection. Raises build.UnavailableError where there is nothing to run it with."""
    build.find_toolchain()
    environment = {
        **os.environ,
        "ADEPT_CUDA_ON_CPU": kind,
        "ADEPT_FAST_BUILD": "0",
        "ADEPT_FAST_BACKENDS": "emulated",
        "ASAN_OPTIONS": "detect_leaks=0",  # Python leaks by design
        "LD_PRELOAD": " ".join(_library(name) for name in PRELOADED[kind]),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(TESTS.parent),
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }
    if thin:
        environment["ADEPT_FAST_TESTS"] = "thin"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", *selection]
    done = subprocess.run(
        command, cwd=TESTS, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    said = f"{done.stdout[-4000:]}\n{_finding(done.stderr)}"
    return Result(done.returncode == 0 and " passed" in done.stdout, said)


def _library(name: str) -> str:
    """Where the compiler keeps a runtime library."""
    compiler = shutil.which("gcc") or build.find_toolchain().compiler
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = found.stdout.strip()
    if not Path(path).is_absolute():  # gcc repeats the name of what it does not have
        raise build.UnavailableError(f"gcc has no {name}")
    return path


def _finding(said: str) -> str:
    """What was found, without most of Python's stack."""
    lines = said.splitlines()
    found = (at for at, line in enumerate(lines) if any(finding in line for finding in FINDINGS))
    first = next(found, max(0, len(lines) - 15))
    return "\n".join(line[:300] for line in lines[first : first + 20])


if __name__ == "__main__":
    result = run(cast(build.Kind, sys.argv[1]), sys.argv[2:])
    sys.stdout.write(f"{result.said}\n")
    sys.exit(not result.passed)

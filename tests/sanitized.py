"""Runs tests of operators, with few of their shapes, in a process of their own that looks for mistakes.

``address`` is AddressSanitizer with UBSan, of the operators of a CPU and of the emulated ones; ``races``
checks every access of the emulated ones. What is built stays in build/ of a checkout. By hand, from tests/::

    python -m sanitized races operators/test_op_mlp.py -k float16
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from backends import INSTRUCTION_SETS
from cuda_on_cpu import build

from adept_fast.extension import recipe
from adept_fast.extension.loader import find_sources

TESTS = Path(__file__).resolve().parent
Kind = Literal["address", "races"]

# AddressSanitizer has to be there before everything else, the C++ library at once after it.
PRELOADED = ("libasan.so", "libstdc++.so")
FINDINGS = ("ERROR: AddressSanitizer", "runtime error:", "RuntimeError:")
OPERATORS = TESTS / "operators"
OF_A_CPU_ALONE = ("test_op_contract.py", "test_op_decode_step.py", "test_op_reference.py")
STEPS = (
    "test_instruction_sets_agree",
    "test_threads_change_no_bit",
    "test_tokens_whose_slot_is_minus_1_are_left_out",
)
FUZZ = {
    "cpu": "test_random_arguments",
    "emulated": "test_random_arguments_of_the_cuda_operators",
}
IN_SUCH_A_RUN = bool(os.environ.get("ADEPT_FAST_SANITIZE")) or "ADEPT_CUDA_ON_CPU" in os.environ


@dataclass(frozen=True)
class Result:
    """What came of a run."""

    passed: bool
    said: str


def available(kind: Kind) -> list[str]:
    """The backends that can be built with this kind of check. Raises UnavailableError if none can."""
    try:
        build.find_toolchain()
    except build.UnavailableError:
        if kind == "races":
            raise
        return ["cpu"]
    return ["cpu", "emulated"] if kind == "address" else ["emulated"]


def selection(backends: Sequence[str]) -> list[str]:
    """The tests of operators that run on these backends."""
    files = [file for file in sorted(OPERATORS.glob("test_op_*.py")) if file.name not in OF_A_CPU_ALONE]
    steps = [f"{OPERATORS / 'test_op_decode_step.py'}::{name}" for name in STEPS]
    return [
        *map(str, files),
        *(steps if "cpu" in backends else []),
        *(f"{TESTS / 'test_fuzz_operators.py'}::{FUZZ[name]}" for name in backends),
    ]


def run(kind: Kind, backends: Sequence[str], tests: Sequence[str]) -> Result:
    """Run pytest with these tests. Raises UnavailableError where there is nothing to run it with."""
    environment = {
        **os.environ,
        "ADEPT_CUDA_ON_CPU": kind,
        "ADEPT_FAST_BACKENDS": ",".join(backends),
        "ADEPT_FAST_BUILD": "0",
        "ADEPT_FAST_TESTS": "thin",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(TESTS.parent),
    }
    if kind == "address":
        environment |= _sanitized_extension()
        environment["LD_PRELOAD"] = " ".join(map(_library, PRELOADED))
    if "emulated" in backends:
        # Here, as compilers are slow under a sanitizer's allocator.
        environment["ADEPT_CUDA_ON_CPU_LIBRARY"] = str(build.build_operators(kind))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(
        command, cwd=TESTS, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    said = f"{done.stdout[-4000:]}\n{_finding(done.stderr)}"
    passed = done.returncode == 0 and " passed" in done.stdout and "skipped" not in done.stdout
    return Result(passed, said)


def _sanitized_extension() -> dict[str, str]:
    """The environment in which it is loaded; it is built if its sources have changed."""
    csrc = find_sources()
    if csrc is None:
        raise build.UnavailableError("the sources of the extension are not here")
    try:
        recipe.check_prerequisites(csrc)
    except recipe.BuildError as error:
        raise build.UnavailableError(str(error)) from error
    environment = {
        "ADEPT_FAST_CACHE": str(csrc.parent / "build" / "sanitized"),
        "ADEPT_FAST_CUDA": "0",
        "ADEPT_FAST_SANITIZE": "address,undefined",
        "ASAN_OPTIONS": "detect_leaks=0",  # Python leaks by design
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }
    # avx512_vnni has all accesses of avx512.
    wanted = [name for name in INSTRUCTION_SETS if name != "avx512" or "avx512_vnni" not in INSTRUCTION_SETS]
    command = [sys.executable, str(TESTS / "sanitized_extension.py"), *wanted]
    paths = {"PYTHONPATH": str(TESTS.parent)}
    done = subprocess.run(
        command, env=os.environ | environment | paths, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return environment


def _library(name: str) -> str:
    """Where the compiler keeps a runtime library."""
    gcc = shutil.which("gcc")
    if gcc is None:
        raise build.UnavailableError("no gcc, whose sanitizers these are")
    found = subprocess.run([gcc, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
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
    chosen: Kind = "address" if sys.argv[1] == "address" else "races"
    result = run(chosen, available(chosen), sys.argv[2:])
    sys.stdout.write(f"{result.said}\n")
    sys.exit(not result.passed)

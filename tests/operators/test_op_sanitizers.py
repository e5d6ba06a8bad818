"""The operators under AddressSanitizer and UBSan; the emulated ones with every access checked for races too.

The tests are those of the operators, with few of their shapes. The sanitized extension is built once for its
sources, into build/ in a checkout, which takes minutes; a later run finds it there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_on_cpu import build, sanitized
from cuda_on_cpu.build import Kind

from adept_fast import extension
from adept_fast.extension import recipe
from adept_fast.extension.loader import find_sources

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent
FUZZ = TESTS / "test_fuzz_operators.py"
ON_A_CPU_ALONE = (
    "test_op_contract.py",
    "test_op_decode_step.py",
    "test_op_reference.py",
    Path(__file__).name,
)
OPERATORS = [str(file) for file in sorted(HERE.glob("test_op_*.py")) if file.name not in ON_A_CPU_ALONE]
STEPS = (
    "test_instruction_sets_agree",
    "test_threads_change_no_bit",
    "test_tokens_whose_slot_is_minus_1_are_left_out",
)
ON_A_CPU = [
    *OPERATORS,
    *(f"{HERE / 'test_op_decode_step.py'}::{name}" for name in STEPS),
    f"{FUZZ}::test_random_arguments",
]
EMULATED = [*OPERATORS, f"{FUZZ}::test_random_arguments_of_the_cuda_operators"]
KINDS: tuple[Kind, ...] = ("address", "races")
WITH_SANITIZERS = bool(os.environ.get("ADEPT_FAST_SANITIZE")) or "ADEPT_CUDA_ON_CPU" in os.environ


def requirements() -> Path:
    """The sources; skips where nothing can be built."""
    csrc = find_sources()
    if csrc is None:
        pytest.skip("the sources of the extension are not here")
    try:
        recipe.check_prerequisites(csrc)
    except recipe.BuildError as error:
        pytest.skip(str(error))
    return csrc


def test_the_extension_is_loaded_where_it_can_be_built() -> None:
    requirements()
    if os.environ.get("ADEPT_FAST_BUILD") == "0" and not extension.load().loaded:
        pytest.skip("ADEPT_FAST_BUILD is 0")
    assert extension.load().loaded, extension.load().reason


def library(name: str) -> str:
    """Where the compiler keeps a runtime library; skips where it has none."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("no gcc, whose sanitizers these are")
    found = subprocess.run([gcc, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = Path(found.stdout.strip())
    if not path.is_absolute():  # gcc repeats the name of what it does not have
        pytest.skip(f"gcc has no {name}")
    return str(path)


def finding(said: str) -> str:
    """What a sanitizer found, without most of Python's stack."""
    lines = said.splitlines()
    found = (
        at for at, line in enumerate(lines) if "ERROR: AddressSanitizer" in line or "runtime error:" in line
    )
    first = next(found, max(0, len(lines) - 15))
    return "\n".join(line[:200] for line in lines[first : first + 15])


@pytest.mark.slow
@pytest.mark.skipif(WITH_SANITIZERS, reason="this is that run")
def test_the_operators_of_a_cpu() -> None:
    csrc = requirements()
    environment = {
        **os.environ,
        "ADEPT_FAST_BACKENDS": "cpu",
        "ADEPT_FAST_CACHE": str(csrc.parent / "build" / "sanitized"),
        "ADEPT_FAST_CUDA": "0",
        "ADEPT_FAST_SANITIZE": "address,undefined",
        "ADEPT_FAST_TESTS": "thin",
        "ASAN_OPTIONS": "detect_leaks=0",  # Python leaks by design
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so')}",
        "PYTHONPATH": str(csrc.parent),
    }
    environment.pop("ADEPT_FAST_BUILD", None)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", *ON_A_CPU],
        cwd=csrc.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    said = f"{done.stdout[-4000:]}\n{finding(done.stderr)}"
    assert done.returncode == 0, said
    assert " passed" in done.stdout, said
    assert "skipped" not in done.stdout, said


@pytest.mark.slow
@pytest.mark.skipif(WITH_SANITIZERS, reason="this is that run")
@pytest.mark.parametrize("kind", KINDS)
def test_the_emulated_operators(kind: Kind) -> None:
    try:
        result = sanitized.run(kind, EMULATED)
    except build.UnavailableError as error:
        pytest.skip(str(error))
    assert result.passed, result.said

"""The native operators run wherever they can be built, and under AddressSanitizer and UBSan they stay clean.

The sanitized extension is built once for its sources, into build/ in a checkout, which takes minutes; a later
run finds it there. Its tests are those of the operators, with few of their shapes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adept_fast import extension
from adept_fast.extension import recipe
from adept_fast.extension.loader import find_sources

TESTS = Path(__file__).resolve().parent
SELECTED = (
    "test_native_linear.py",
    "test_native_mlp.py",
    "test_native_attention.py",
    "test_native_advance.py",
    "test_native_contract.py::test_read_adds_up_all_there_is",
    "test_native_refusals.py",
    "test_native_aliasing.py",
    "test_fuzz_operators.py::test_random_arguments",
    "test_native_step.py::test_instruction_sets_agree",
    "test_native_step.py::test_threads_change_no_bit",
    "test_native_step.py::test_tokens_whose_slot_is_minus_1_are_left_out",
)
WITH_SANITIZERS = bool(os.environ.get("ADEPT_FAST_SANITIZE"))


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
    """Else every other test of it would be skipped, and nobody would know."""
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


@pytest.mark.skipif(WITH_SANITIZERS, reason="this is that run")
def test_the_operators_under_sanitizers() -> None:
    csrc = requirements()
    environment = {
        **os.environ,
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
    selected = [str(TESTS / name) for name in SELECTED]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", *selected],
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

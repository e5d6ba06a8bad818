"""The CUDA operators on a CPU under AddressSanitizer and UBSan, and with every access checked for races.

The tests are those of the operators, with few of their shapes.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cuda_on_cpu import build, sanitized
from cuda_on_cpu.build import Kind

TESTS = Path(__file__).resolve().parent
KINDS: tuple[Kind, ...] = ("address", "races")
# Every module of tests that runs the operators in the emulator, which all go by cuda_place or the library.
SELECTED = sorted(
    file.name
    for file in TESTS.glob("test_cuda_*.py")
    if any(
        name in file.read_text(encoding="utf-8") for name in ("from cuda_place import", "cuda_on_cpu.library")
    )
    and file.name != Path(__file__).name
)
RANDOM = "test_fuzz_operators.py::test_random_arguments_of_the_cuda_operators"


@pytest.mark.skipif("ADEPT_CUDA_ON_CPU" in os.environ, reason="this is such a run")
@pytest.mark.parametrize("kind", KINDS)
def test_the_operators_under_sanitizers(kind: Kind) -> None:
    assert SELECTED
    try:
        result = sanitized.run(kind, [*SELECTED, RANDOM])
    except build.UnavailableError as error:
        pytest.skip(str(error))
    assert result.passed, result.said

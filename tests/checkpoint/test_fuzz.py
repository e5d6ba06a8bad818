"""Mutated checkpoints of every format load or are refused; ``make fuzz`` tries more of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TESTS = Path(__file__).resolve().parents[1]

# What the process that opens a checkpoint must not get away with, and one that is as it should be.
PLANTED = """
import ctypes, os, signal, sys
from pathlib import Path
from fuzz_process import attempt

planted = eval(f"lambda: ({sys.argv[1]})")
seconds = 1 if "pause" in sys.argv[1] else 20
end = attempt(Path("x"), lambda path: (planted(), ("refused", "said so"))[1], seconds)
print(end.kind, end.message)
"""


def test_mutated_checkpoints() -> None:
    program = [sys.executable, TESTS / "fuzz_checkpoints.py", "--count", "200"]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("planted", "found"),
    [
        ("0", "refused said so"),
        ("signal.pause()", "fault SIGALRM"),
        ("signal.signal(signal.SIGALRM, signal.SIG_IGN), signal.pause()", "fault time ran out"),
        ("bytearray(10**9)", "fault allocated 1"),
        ("bytearray(10**10)", "MemoryError"),
        ("ctypes.string_at(0)", "fault SIGSEGV"),
        ("{}['missing']", "KeyError"),
        ("os.system('true')", "fault did os.system"),
        ("exec('x = 1')", "fault did exec"),
        ("os._exit(3)", "fault ended with 3"),
    ],
)
def test_faults_are_found(planted: str, found: str) -> None:
    program = [sys.executable, "-c", PLANTED, planted]
    done = subprocess.run(program, cwd=TESTS, capture_output=True, text=True, check=True, timeout=60)
    assert found in done.stdout

"""A fork of a process that has torch is to its caller what an interpreter is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from own_process import ROOT, python, run_python

SHOWN = """
import json, os, sys
print(json.dumps([sys.argv[1:], sys.stdin.read(), os.getcwd(), os.environ.get("ASKED"), __name__]))
print("said", file=sys.stderr)
"""


@pytest.mark.parametrize("kind", ["-c", "-m", "file"])
def test_arguments_streams_and_surroundings(tmp_path: Path, kind: str) -> None:
    (tmp_path / "shown.py").write_text(SHOWN)
    program = {"-c": ["-c", SHOWN], "-m": ["-m", "shown"], "file": [str(tmp_path / "shown.py")]}[kind]
    environment = {**os.environ, "ASKED": "yes", "PYTHONPATH": str(ROOT)}
    given = {"cwd": tmp_path, "env": environment, "input": "in", "capture_output": True, "text": True}
    found, expected = (
        subprocess.run([*start, *program, "a", "b c"], check=True, **given)  # type: ignore[call-overload]
        for start in (python(), [sys.executable])
    )
    assert (found.stdout, found.stderr) == (expected.stdout, "said\n")
    assert json.loads(found.stdout) == [["a", "b c"], "in", str(tmp_path), "yes", "__main__"]


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("", 0),
        ("raise SystemExit(3)", 3),
        ("import sys; sys.exit('a word')", 1),
        ("1 / 0", 1),
        ("raise KeyboardInterrupt", -2),
        ("import os; os._exit(7)", 7),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import ctypes; ctypes.string_at(0)", -11),
    ],
)
def test_how_it_ends(program: str, code: int) -> None:
    done = run_python(program)
    assert done.returncode == code
    assert ("ZeroDivisionError: division by zero" in done.stderr) == ("1 / 0" in program)
    assert (done.stderr == "a word\n") == ("a word" in program)


def test_it_has_torch_and_not_this_package() -> None:
    found = "import sys; print('torch' in sys.modules, 'adept_fast' in sys.modules)"
    assert run_python(found).stdout == "True False\n"

"""Python in a process of its own, which finds the package where this one did."""

from __future__ import annotations

import atexit
import functools
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import adept_fast

ROOT = Path(adept_fast.__file__).resolve().parents[1]


@functools.cache
def python() -> list[str]:
    """What to put in place of ``sys.executable``, where how an interpreter starts is not what is tested.

    The process has imported torch, and not this package. It is no child of the caller itself, so a signal to
    the one that is does not reach it; how it ends does. Of options it takes ``-c`` and ``-m`` alone.
    """
    program = str(Path(__file__).with_name("forked_python.py"))
    address = os.path.join(tempfile.mkdtemp(), "python")
    server = subprocess.Popen(
        [sys.executable, program, address, "--serve"],
        env={**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    atexit.register(server.communicate)  # its stdin ends with this process, and it with that
    return [sys.executable, "-S", "-E", program, address]


def python_file(path: Path, *arguments: str) -> Path:
    """Write a program that is ``python()`` with these arguments before its own."""
    path.write_text(f'#!/bin/sh\nexec {shlex.join([*python(), *arguments])} "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return path


def run_python(program: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return _run("-c", program, *arguments, **environment)


def run_module(name: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """What ``python -m`` does in the root of the repository."""
    return _run("-m", name, *arguments, cwd=ROOT, **environment)


def _run(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*python(), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )

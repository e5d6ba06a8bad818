"""Python in a process of its own, which finds the package where this one did."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import adept_fast


def run_python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(adept_fast.__file__).resolve().parents[1])
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": root, **environment},
        capture_output=True,
        text=True,
        check=False,
    )

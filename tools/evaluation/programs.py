"""Programs that the model completes; then they run."""

from __future__ import annotations

import secrets
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import adept_fast.integrations.lm_eval  # noqa: F401 (so that lm_eval knows the model adept-fast)

_SECONDS = 10.0  # after which a program counts as wrong


def score_humaneval(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Right if the function passes its tests, in a process of its own with an empty working directory.

    That is no sandbox: it only stops a program that does not end.
    """
    passed = secrets.token_hex()  # which a program that ends early cannot print
    tests = f"{doc['test']}\n\ncheck({doc['entry_point']})\nprint({passed!r})\n"
    program = f"{doc['prompt']}{results[0]}\n\n{tests}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", program],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"acc": 0.0}
    return {"acc": float(done.stdout.splitlines()[-1:] == [passed.encode()])}

"""The stages of ``gpu_check``: programs in processes of their own, each with a limit of time."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEPT_LINES = 40  # of what a process says last
SANITIZER = "========= "  # begins its lines


@dataclass(frozen=True)
class Stage:
    """A part of the check; without ``least`` seconds left it is not begun."""

    name: str
    longest: float  # seconds
    least: float
    run: Callable[[float], Outcome]  # given how many seconds it may take

    def seconds(self, left: float) -> float:
        """How long it may take where so much is left; 0 where it is not worth it."""
        return min(self.longest, left) if left >= self.least else 0.0


@dataclass(frozen=True)
class Outcome:
    """How a stage went; ``passed`` is None where it could not say, such as where a tool is not there."""

    passed: bool | None
    said: str
    last_lines: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Ended:
    """A process that ended, or was ended because its time was up."""

    code: int
    ran_out: bool
    lines: list[str]

    def outcome(self, said: str) -> Outcome:
        if self.ran_out:
            return Outcome(False, f"stopped by its limit; {said}", self.lines)
        return Outcome(self.code == 0, said, [] if self.code == 0 else self.lines)


def run_process(
    command: list[str],
    seconds: float,
    variables: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] = lambda line: None,
) -> Ended:
    """Run a command from the repository's root, and end it and all that it started when its time is up."""
    lines: deque[str] = deque(maxlen=KEPT_LINES)
    ran_out = threading.Event()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **(variables or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that its whole group can be ended
    )

    def stop() -> None:
        ran_out.set()
        _end_group(process)

    timer = threading.Timer(seconds, stop)
    timer.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            on_line(line.rstrip())
        process.wait()
    finally:
        timer.cancel()
        _end_group(process)
        process.wait()
    return Ended(process.returncode, ran_out.is_set(), list(lines))


def _end_group(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


BUILD = """
import sys
from adept_fast import extension
built = extension.load()
print(f"{built.reason}; CUDA: {built.cuda_reason}" if built.loaded else built.reason)
sys.exit(not built.cuda)
"""


def build(seconds: float) -> Outcome:
    """The extension with its CUDA kernels, once for all that follows."""
    ended = run_process([sys.executable, "-c", BUILD], seconds)
    return ended.outcome(ended.lines[-1] if ended.lines else "")


def files_with_a_place() -> list[str]:
    """The tests of operators that run on a GPU too."""
    files = sorted((ROOT / "tests").glob("test_cuda_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if "cuda_place" in file.read_text(encoding="utf-8")]


def operator_tests(seconds: float) -> Outcome:
    return _run_tests([], files_with_a_place(), seconds, {"ADEPT_FAST_PLACE": "gpu"})


def model_tests(seconds: float) -> Outcome:
    """Those that load a checkpoint where the device is left open, and so onto the GPU."""
    files = ["tests/test_cuda_model.py", "tests/test_runtime.py", "tests/test_graphs_cuda.py"]
    return _run_tests([], files, seconds, {})


def sanitize(tool: str) -> Callable[[float], Outcome]:
    """A stage: the operators' tests, on few shapes, under a tool of compute-sanitizer."""

    def run(seconds: float) -> Outcome:
        home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
        sanitizer = shutil.which("compute-sanitizer", path=f"{os.environ.get('PATH', '')}:{home}/bin")
        if sanitizer is None:
            return Outcome(None, "compute-sanitizer is not installed")
        before = [sanitizer, "--tool", tool, "--target-processes", "all", "--error-exitcode", "9"]
        before += ["--kernel-regex", "kns=_ZN5adept"]  # torch's own kernels are not looked at
        variables = {
            "ADEPT_FAST_PLACE": "gpu",
            "ADEPT_FAST_TESTS": "thin",
            # What torch keeps for later hides where an allocation ends.
            "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
        }
        return _run_tests(before, files_with_a_place(), seconds, variables)

    return run


def _run_tests(before: list[str], files: list[str], seconds: float, variables: Mapping[str, str]) -> Outcome:
    if not files:
        return Outcome(None, "there are no tests to run")
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    ended = run_process([*before, *pytest], seconds, variables)
    said = summary_of(ended.lines)
    counts = {kind: int(count) for count, kind in re.findall(r"(\d+) (passed|skipped)", said)}
    if ended.code == 0 and counts.get("passed", 0) <= counts.get("skipped", 0):
        return Outcome(False, f"hardly a test ran: {said}", ended.lines)
    return ended.outcome(said)


def summary_of(lines: list[str]) -> str:
    """pytest's last line, and that of a sanitizer."""
    counted = re.compile(r"=* ?(.*\d+ (?:passed|failed|skipped|error|deselected).*?) ?=*")
    ours = [line for line in lines if not line.startswith(SANITIZER)]
    counts = [match[1] for line in ours if (match := counted.fullmatch(line))]
    errors = [
        line.removeprefix(SANITIZER) for line in lines if line.startswith(SANITIZER) and "SUMMARY" in line
    ]
    return "; ".join([*counts[-1:], *errors[-1:]]) or (lines[-1] if lines else "nothing was said")

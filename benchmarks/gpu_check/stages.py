"""The stages of ``gpu-check``: programs in processes of their own, each with a limit of time."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEPT_LINES = 40  # the last of a process
SANITIZER = "========= "  # begins its lines
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]


@dataclass(frozen=True)
class Stage:
    """A part of the check; without ``shortest`` seconds left it is not begun."""

    name: str
    longest: float  # seconds
    shortest: float
    run: Callable[[float], Outcome]  # given how many seconds it may take

    def seconds(self, left: float) -> float:
        """How long it may take if ``left`` seconds are left; 0 if that is too little."""
        return min(self.longest, left) if left >= self.shortest else 0.0


@dataclass(frozen=True)
class Outcome:
    """How a stage went; ``passed`` is None if it could not run, such as without a tool."""

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
    started: Callable[[Callable[[], None]], None] = lambda stop: None,
) -> Ended:
    """Run a command from the repository's root; at its limit, end it and all that it started.

    ``started`` gets a function that ends it earlier.
    """
    lines: deque[str] = deque(maxlen=KEPT_LINES)
    ran_out, over = threading.Event(), threading.Event()
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
        if not over.is_set():  # its number may be another's by then
            ran_out.set()
            _end_group(process)

    timer = threading.Timer(seconds, stop)
    timer.start()
    started(stop)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
        process.wait()
    finally:
        over.set()
        timer.cancel()
        _end_group(process)
        process.wait()
    return Ended(process.returncode, ran_out.is_set(), list(lines))


def _end_group(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def run_side_by_side(
    commands: Sequence[list[str]], seconds: float, variables: Mapping[str, str], at_once: int
) -> list[Ended]:
    """Each as ``run_process``, up to ``at_once`` at the same time, all together in ``seconds``."""
    deadline = time.monotonic() + seconds
    stops: list[Callable[[], None]] = []

    def run(command: list[str]) -> Ended:
        left = deadline - time.monotonic()
        if left <= 0:
            return Ended(-signal.SIGKILL, True, [])
        return run_process(command, left, variables, started=stops.append)

    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(run, command) for command in commands]
        try:
            return [future.result() for future in futures]
        except KeyboardInterrupt:  # comes to this thread alone
            pool.shutdown(wait=False, cancel_futures=True)
            for stop in stops:
                stop()
            raise


# Which tests run on a GPU: those of operators, which take a backend and have the marker gpu, and by name
# those that load a checkpoint.
ON_A_GPU = re.compile(
    r"^@(every_backend|(on|in_formats)\((CUDA|KERNELS)\b)|^    for \w+ in (CUDA|KERNELS)$|\bin BACKENDS\b",
    re.MULTILINE,
)
MODEL_TESTS = (
    "test_graphs_cuda.py",
    "test_cuda_model.py",
    "test_prefill_cuda.py",
    "test_company_cuda.py",
    "test_row_tiles.py",
)
ALONE = "test_memory_stays_within_the_plan"
# Every operator on the GPU alone, at few shapes.
OPERATORS = {"ADEPT_FAST_BACKENDS": "gpu", "ADEPT_FAST_TESTS": "thin"}


def operator_test_files() -> list[str]:
    return [file for file in _test_files() if ON_A_GPU.search((ROOT / file).read_text(encoding="utf-8"))]


def model_test_files() -> list[str]:
    return [file for file in _test_files() if Path(file).name in MODEL_TESTS]


def _test_files() -> list[str]:
    return [str(file.relative_to(ROOT)) for file in sorted((ROOT / "tests").rglob("test_*.py"))]


def operator_tests(seconds: float) -> Outcome:
    """A process for each file, as many at the same time as there are cores."""
    files = operator_test_files()
    cores = os.cpu_count() or 1
    at_once = max(1, min(cores, len(files)))
    variables = {**OPERATORS, "OMP_NUM_THREADS": str(max(1, cores // at_once))}
    ended = run_side_by_side([[*PYTEST, "-m", "gpu", file] for file in files], seconds, variables, at_once)
    return outcome_of_tests(files, ended)


def model_tests(seconds: float) -> Outcome:
    """Those that load a checkpoint onto the GPU; the one that looks at its memory runs alone."""
    files, workers = model_test_files(), min(8, os.cpu_count() or 1)
    began = time.monotonic()
    variables = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}
    many = run_process([*PYTEST, "-n", str(workers), "-k", f"not {ALONE}", *files], seconds, variables)
    alone = run_process([*PYTEST, "-k", ALONE, *files], seconds - (time.monotonic() - began))
    return outcome_of_tests(["models", ALONE], [many, alone])


def sanitize_tests(tool: str) -> Callable[[float], Outcome]:
    """A stage: the operators' tests under a tool of compute-sanitizer."""

    def run(seconds: float) -> Outcome:
        home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
        sanitizer = shutil.which("compute-sanitizer", path=f"{os.environ.get('PATH', '')}:{home}/bin")
        if sanitizer is None:
            return Outcome(None, "compute-sanitizer is not installed")
        before = [sanitizer, "--tool", tool, "--target-processes", "all", "--error-exitcode", "9"]
        before += ["--kernel-regex", "kns=_ZN5adept"]  # torch's own kernels are not looked at
        # torch's cache of freed memory would hide the end of an allocation.
        variables = {**OPERATORS, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        files = operator_test_files()
        return outcome_of_tests(
            files, [run_process([*before, *PYTEST, "-m", "gpu", *files], seconds, variables)]
        )

    return run


def outcome_of_tests(files: list[str], ended: list[Ended]) -> Outcome:
    """Of all processes of pytest together: more tests have run than were skipped, and none failed.

    There is a process for each file, or one for all.
    """
    if not ended:
        return Outcome(None, "there are no tests to run")
    summaries = [summary_of(each.lines) for each in ended]
    counts: Counter[str] = Counter()
    for summary in summaries:
        counts.update({kind: int(count) for count, kind in re.findall(r"(\d+) ([a-z]+)", summary)})
    kinds = ("failed", "error", "errors", "passed", "skipped")
    said = ", ".join(f"{counts[kind]} {kind}" for kind in kinds if counts[kind]) or summaries[0]
    names = files if len(ended) == len(files) else ["all files"]
    wrong = {
        name: ("stopped by its limit; " if each.ran_out else "") + summary
        for name, each, summary in zip(names, ended, summaries, strict=True)
        if each.ran_out or each.code
    }
    if wrong:
        parts = [f"{name}: {summary}" for name, summary in wrong.items()]
        last = [line for each in ended if each.ran_out or each.code for line in each.lines]
        return Outcome(False, "; ".join([said, *parts]), last)
    if counts["passed"] <= counts["skipped"]:
        return Outcome(False, f"hardly a test ran: {said}", [line for each in ended for line in each.lines])
    return Outcome(True, said)


def summary_of(lines: list[str]) -> str:
    """pytest's last line, and that of a sanitizer."""
    counted = re.compile(r"=* ?(.*\d+ (?:passed|failed|skipped|error|deselected).*?) ?=*")
    ours = [line for line in lines if not line.startswith(SANITIZER)]
    counts = [match[1] for line in ours if (match := counted.fullmatch(line))]
    errors = [
        line.removeprefix(SANITIZER) for line in lines if line.startswith(SANITIZER) and "SUMMARY" in line
    ]
    return "; ".join([*counts[-1:], *errors[-1:]]) or (lines[-1] if lines else "nothing was said")

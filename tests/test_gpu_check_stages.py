"""The stages of tools/gpu_check.py: they end in time, go on behind what fails, and write what they found."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "benchmarks")]

import gpu_check_run  # noqa: E402
import gpu_check_stages  # noqa: E402
from gpu_check_cases import all_cases, few_cases  # noqa: E402
from gpu_check_report import ALONE  # noqa: E402
from gpu_check_run import Check, Timings  # noqa: E402
from gpu_check_stages import Ended, Outcome, Stage, files_with_a_place, run_process, summary_of  # noqa: E402
from harness import describe_run  # noqa: E402


def test_a_stage_is_begun_only_where_it_can_end() -> None:
    stage = Stage("some", longest=100, least=10, run=lambda seconds: Outcome(True, ""))
    assert [stage.seconds(left) for left in (500, 100, 50, 10, 9.9, -3)] == [100, 100, 50, 10, 0, 0]


def test_a_process_ends_with_all_that_it_started() -> None:
    program = "import subprocess as s; p = s.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    seen: list[str] = []
    began = time.monotonic()
    ended = run_process([sys.executable, "-c", program], 2.0, on_line=seen.append)
    assert time.monotonic() - began < 30
    assert ended.ran_out
    assert ended.outcome("half").said == "stopped by its limit; half"
    assert seen == ended.lines
    while time.monotonic() - began < 30 and is_running(seen[0]):
        time.sleep(0.01)
    assert not is_running(seen[0])


def is_running(pid: str) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "zombie" not in status.read_text()


def test_how_a_process_went_is_told() -> None:
    ended = run_process([sys.executable, "-c", "import os; print(os.environ['A']); exit(4)"], 60, {"A": "b"})
    assert ended == Ended(4, False, ["b"])
    assert ended.outcome("words") == Outcome(False, "words", ["b"])
    assert run_process([sys.executable, "-c", ""], 60).outcome("") == Outcome(True, "")


def test_the_last_line_of_pytest_is_told() -> None:
    failed = ["FAILED tests/test_it.py::test_1 - 3 errors in it", "1 failed, 2 passed, 3 skipped in 4.05s"]
    assert summary_of(failed) == failed[1]
    assert summary_of(["===== 5 passed in 1.0s =====", "========= ERROR SUMMARY: 2 errors"]) == (
        "5 passed in 1.0s; ERROR SUMMARY: 2 errors"
    )
    assert summary_of(["No module named pytest"]) == "No module named pytest"
    assert summary_of([]) == "nothing was said"


@pytest.mark.parametrize(
    ("ended", "passed"),
    [
        (Ended(0, False, ["4 passed, 2 skipped in 1.0s"]), True),
        (Ended(0, False, ["6 skipped in 1.0s"]), False),
        (Ended(0, False, ["1 passed, 506 skipped in 1.0s"]), False),
        (Ended(1, False, ["1 failed, 3 passed in 1.0s"]), False),
        (Ended(9, False, ["4 passed in 1.0s", "========= ERROR SUMMARY: 2 errors"]), False),
        (Ended(-9, True, ["....."]), False),
    ],
)
def test_tests_pass_where_most_ran_and_none_failed(
    ended: Ended, passed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[list[str], Any]] = []

    def pretend(command: list[str], seconds: float, variables: Any) -> Ended:
        started.append((command, variables))
        return ended

    monkeypatch.setattr(gpu_check_stages, "run_process", pretend)
    monkeypatch.setattr("shutil.which", lambda name, path: f"/bin/{name}")
    assert gpu_check_stages.operator_tests(5).passed is passed
    assert gpu_check_stages.sanitize("racecheck")(5).passed is passed
    (plain, _), (sanitized, variables) = started
    assert plain == sanitized[-len(plain) :]
    assert sanitized[:3] == ["/bin/compute-sanitizer", "--tool", "racecheck"]
    assert variables["ADEPT_FAST_PLACE"] == "gpu"
    monkeypatch.setattr("shutil.which", lambda name, path: None)
    assert gpu_check_stages.sanitize("racecheck")(5).passed is None


def test_tests_of_operators_are_found() -> None:
    files = files_with_a_place()
    assert files
    assert all("cuda_place" in (ROOT / file).read_text(encoding="utf-8") for file in files)


CRASHING = """
import json, sys
first = int(sys.argv[sys.argv.index("--from") + 1])
print("a word of a library", flush=True)
print(json.dumps({"copy_bytes_per_second": 3e12}), flush=True)
for number in range(first, 6):
    if number == 2:
        print(json.dumps({"number": 2, "failed": "illegal address"}), flush=True)
        sys.exit(3)
    if number == 4:
        sys.exit(-11)
    times = {"median": 1e-4, "p10": 1e-4, "p90": 1e-4}
    print(json.dumps({"number": number, "seconds": times, "bytes": 10**8, "copies": 1, "calls_per_replay": 9,
                      "difference": 1e-4}), flush=True)
"""


def test_timings_go_on_behind_a_kernel_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "timing.py"
    script.write_text(CRASHING, encoding="utf-8")
    monkeypatch.setattr(gpu_check_run, "TIMING", str(script))
    report: dict[str, Any] = {"measured": {}}
    outcome = Timings(report, overlap=True)(60)
    cases = list(all_cases())[:6]
    assert list(report["measured"]) == [case.name for case in cases]
    failed = [entry.get("failed") for entry in report["measured"].values()]
    assert failed == [None, None, "illegal address", None, "the process ended with 245", None]
    assert outcome.passed is False
    assert outcome.said.startswith(f"6 of {len(list(all_cases()))} cases, 2 of them wrong: {cases[2].name}")


def test_those_that_do_not_fit_are_the_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "timing.py"
    slow = CRASHING.replace("if number == 2", "if number == 1: import time; time.sleep(60)\n    if 0")
    script.write_text(slow, encoding="utf-8")
    monkeypatch.setattr(gpu_check_run, "TIMING", str(script))
    report: dict[str, Any] = {"measured": {}}
    outcome = Timings(report, overlap=False)(3)
    assert outcome == Outcome(True, f"1 of {len(list(few_cases()))} cases, as many as fit")
    assert list(report["measured"]) == [next(few_cases()).name + ALONE]


def new_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: list[Stage]) -> Check:
    monkeypatch.setattr(Check, "stages", lambda check: stages)
    report = describe_run("gpu-check", 50, 1) | {"stages": {}, "measured": {}}
    return Check(report, tmp_path / "device" / "gpu-check.json")


def test_what_was_found_is_written_after_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = tmp_path / "device" / "gpu-check.json"

    def second(seconds: float) -> Outcome:
        assert json.loads(written.read_text(encoding="utf-8"))["stages"]["first"]["verdict"] == "passed"
        assert seconds == 5
        return Outcome(False, "one is wrong", ["why"])

    def third(seconds: float) -> Outcome:
        raise KeyboardInterrupt

    check = new_check(
        tmp_path,
        monkeypatch,
        [
            Stage("first", 5, 1, lambda seconds: Outcome(True, "all is well")),
            Stage("long", 5000, 1000, second),
            Stage("second", 5, 1, second),
            Stage("third", 5, 1, third),
            Stage("fourth", 5, 1, second),
        ],
    )
    with pytest.raises(KeyboardInterrupt):
        check.run(time.monotonic() + 100)
    stages = json.loads(written.read_text(encoding="utf-8"))["stages"]
    assert {name: (stage["verdict"], stage["said"]) for name, stage in stages.items()} == {
        "first": ("passed", "all is well"),
        "long": ("not checked", "not begun: no time was left"),
        "second": ("failed", "one is wrong"),
        "third": ("not checked", "interrupted"),
    }
    assert stages["second"]["last_lines"] == ["why"]
    assert not check.passed


def test_all_stages_together_are_in_the_order_of_their_value(tmp_path: Path) -> None:
    report = describe_run("gpu-check", 50, 1) | {"stages": {}, "measured": {}}
    stages = Check(report, tmp_path / "gpu-check.json").stages()
    names = [stage.name for stage in stages]
    assert names[:2] == ["operators", "timings"]
    assert names[-2:] == ["memcheck", "racecheck"]
    assert all(0 < stage.least <= stage.longest for stage in stages)

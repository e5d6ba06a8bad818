"""The stages of ``gpu-check``: they end in time, go on behind what fails, and write what they found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_check import stages as gpu_check_stages
from benchmarks.gpu_check.run import (
    BASELINES_MINUTES,
    LAYOUTS_MINUTES,
    Check,
    baseline_stages,
    check_stages,
    layout_stages,
    limit_seconds,
)
from benchmarks.gpu_check.stages import (
    Ended,
    Outcome,
    Stage,
    operator_test_files,
    outcome_of_tests,
    run_process,
    run_side_by_side,
    summary_of,
)
from benchmarks.result_file import describe_run

ROOT = Path(__file__).resolve().parents[2]


def test_a_stage_is_begun_only_where_it_can_end() -> None:
    stage = Stage("some", longest=100, shortest=10, run=lambda seconds: Outcome(True, ""))
    assert [stage.seconds(left) for left in (500, 100, 50, 10, 9.9, -3)] == [100, 100, 50, 10, 0, 0]


WITH_A_CHILD = "import subprocess as s; p = s.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"


def test_a_process_ends_with_all_that_it_started() -> None:
    began = time.monotonic()
    ended = run_process([sys.executable, "-c", WITH_A_CHILD], 2.0)
    assert time.monotonic() - began < 30
    assert ended.ran_out
    assert ended.outcome("half").said == "stopped by its limit; half"
    assert is_gone(ended.lines[0], began + 30)


def is_gone(pid: str, deadline: float) -> bool:
    """Whether a process that was ended is so before a time."""
    status = Path(f"/proc/{pid}/status")
    while time.monotonic() < deadline:
        if not status.exists() or "zombie" in status.read_text():
            return True
        time.sleep(0.01)
    return False


def test_how_a_process_went_is_told() -> None:
    ended = run_process([sys.executable, "-c", "import os; print(os.environ['A']); exit(4)"], 60, {"A": "b"})
    assert ended == Ended(4, False, ["b"])
    assert ended.outcome("words") == Outcome(False, "words", ["b"])
    assert run_process([sys.executable, "-c", ""], 60).outcome("") == Outcome(True, "")


def test_processes_side_by_side_share_the_time(tmp_path: Path) -> None:
    """Each waits for the file of the other, so they end only where both run at once."""
    meet = (
        "import pathlib, sys; folder, mine, other = map(pathlib.Path, sys.argv[1:])\n"
        "(folder / mine).touch()\nwhile not (folder / other).exists(): pass\nprint(mine)"
    )
    commands = [[sys.executable, "-c", meet, str(tmp_path), *names] for names in (("a", "b"), ("b", "a"))]
    ended = run_side_by_side(commands, 60, {}, at_once=2)
    assert [each.lines for each in ended] == [["a"], ["b"]]  # in the order of the commands
    for name in ("a", "b"):
        (tmp_path / name).unlink()
    ended = run_side_by_side(commands, 2.0, {}, at_once=1)
    assert [each.ran_out for each in ended] == [True, True]  # the second was not begun


def test_an_interrupt_ends_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    seen: list[str] = []
    both = threading.Event()

    def watched(*arguments: Any, started: Any) -> Ended:
        ended = run_process(*arguments, started=lambda stop: (started(stop), both.set()))
        seen.extend(ended.lines)
        return ended

    def interrupted(future: Any) -> Any:
        assert both.wait(30)
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu_check_stages, "run_process", watched)
    monkeypatch.setattr("concurrent.futures.Future.result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_side_by_side([[sys.executable, "-c", WITH_A_CHILD]] * 2, 60, {}, at_once=1)
    assert time.monotonic() - began < 30
    assert all(is_gone(pid, began + 30) for pid in seen)


def test_the_last_line_of_pytest_is_told() -> None:
    failed = ["FAILED tests/test_it.py::test_1 - 3 errors in it", "1 failed, 2 passed, 3 skipped in 4.05s"]
    assert summary_of(failed) == failed[1]
    assert summary_of(["===== 5 passed in 1.0s =====", "========= ERROR SUMMARY: 2 errors"]) == (
        "5 passed in 1.0s; ERROR SUMMARY: 2 errors"
    )
    assert summary_of(["No module named pytest"]) == "No module named pytest"
    assert summary_of([]) == "nothing was said"


@pytest.mark.parametrize(
    ("ended", "passed", "said"),
    [
        ([Ended(0, False, ["4 passed, 2 skipped in 1.0s"])], True, "4 passed, 2 skipped"),
        ([Ended(0, False, ["6 skipped in 1.0s"])], False, "hardly a test ran: 6 skipped"),
        ([Ended(1, False, ["1 failed, 3 passed in 1s"])], False, "1 failed, 3 passed; all files: 1 failed, "),
        (
            [Ended(9, False, ["4 passed in 1.0s", "========= ERROR SUMMARY: 2 errors"])],
            False,
            "2 errors, 4 passed; all files: 4 passed in 1.0s; ERROR SUMMARY: 2 errors",
        ),
        ([Ended(-9, True, ["....."])], False, ".....; all files: stopped by its limit; ....."),
        (
            [Ended(0, False, ["4 passed in 1s"]), Ended(0, False, ["2 skipped in 1s"])],
            True,
            "4 passed, 2 skipp",
        ),
        (
            [Ended(0, False, ["4 passed in 1s"]), Ended(0, False, ["6 skipped in 1s"])],
            False,
            "hardly a test ran: 4 passed, 6 skipped",
        ),
        (
            [Ended(0, False, ["4 passed in 1s"]), Ended(1, False, ["why", "1 failed in 1s"])],
            False,
            "1 failed, 4 passed; b.py: 1 failed in 1s",
        ),
        ([Ended(0, False, ["4 passed in 1s"]), Ended(-9, True, [])], False, "4 passed; b.py: stopped by its"),
        ([], None, "there are no tests to run"),
    ],
)
def test_tests_pass_where_most_ran_and_none_failed(
    ended: list[Ended], passed: bool | None, said: str
) -> None:
    outcome = outcome_of_tests(["a.py", "b.py"], ended)
    assert outcome.passed is passed
    assert outcome.said.startswith(said)
    if len(ended) == 2 and ended[1].code == 1:
        assert outcome.last_lines == ended[1].lines  # and not those of what passed


def test_operator_tests_are_thin_and_each_file_has_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    files = operator_test_files()
    taken: dict[str, Any] = {}

    def pretend(commands: Any, seconds: float, variables: Any, at_once: int) -> list[Ended]:
        taken.update(commands=commands, variables=variables, at_once=at_once)
        return [Ended(0, False, ["3 passed in 1.0s"]) for _ in commands]

    monkeypatch.setattr(gpu_check_stages, "run_side_by_side", pretend)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    outcome = gpu_check_stages.operator_tests(5)
    assert outcome == Outcome(True, f"{3 * len(files)} passed")
    assert [command[-1] for command in taken["commands"]] == files
    assert len(set(map(len, taken["commands"]))) == 1
    assert taken["at_once"] == 4
    assert taken["variables"] == gpu_check_stages.OPERATORS | {"OMP_NUM_THREADS": "1"}


def test_model_tests_share_processes_but_the_one_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def pretend(command: list[str], seconds: float, variables: Any = None) -> Ended:
        commands.append(command)
        return Ended(0, False, ["3 passed in 1.0s"])

    monkeypatch.setattr(gpu_check_stages, "run_process", pretend)
    assert gpu_check_stages.model_tests(5) == Outcome(True, "6 passed")
    for command in commands:
        files = {Path(part).name for part in command if (ROOT / part).is_file() and part.endswith(".py")}
        assert files == set(gpu_check_stages.MODEL_TESTS)
    chosen = [command[command.index("-k") + 1] for command in commands]
    assert chosen == [f"not {gpu_check_stages.ALONE}", gpu_check_stages.ALONE]


def test_the_sanitizers_run_the_same_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: dict[str, Any] = {}

    def pretend(command: list[str], seconds: float, variables: Any) -> Ended:
        taken.update(command=command, variables=variables)
        return Ended(0, False, ["4 passed in 1.0s"])

    monkeypatch.setattr(gpu_check_stages, "run_process", pretend)
    monkeypatch.setattr("shutil.which", lambda name, path: f"/bin/{name}")
    assert gpu_check_stages.sanitize_tests("racecheck")(5).passed is True
    assert taken["command"][:3] == ["/bin/compute-sanitizer", "--tool", "racecheck"]
    assert taken["command"][-len(operator_test_files()) :] == operator_test_files()
    assert taken["variables"]["ADEPT_FAST_BACKENDS"] == "gpu"
    assert taken["variables"]["ADEPT_FAST_TESTS"] == "thin"
    monkeypatch.setattr("shutil.which", lambda name, path: None)
    assert gpu_check_stages.sanitize_tests("racecheck")(5).passed is None


def test_the_files_of_operators_are_those_with_a_test_for_a_gpu() -> None:
    collect = [*gpu_check_stages.PYTEST, "--collect-only", "-m", "gpu", "tests/operators"]
    done = subprocess.run(
        collect,
        cwd=ROOT,
        env=os.environ | gpu_check_stages.OPERATORS,
        capture_output=True,
        text=True,
        check=True,
    )
    collected = {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line}
    assert operator_test_files() == sorted(collected)


def new_report() -> dict[str, Any]:
    return describe_run("gpu-check", 5, 1) | {"commit": "0123abc", "stages": {}, "measured": {}}


def test_what_was_found_is_written_after_every_stage(tmp_path: Path) -> None:
    written = tmp_path / "device" / "gpu-check.json"

    def second(seconds: float) -> Outcome:
        assert json.loads(written.read_text(encoding="utf-8"))["stages"]["first"]["verdict"] == "passed"
        assert seconds == 5
        return Outcome(False, "one is wrong", ["why"])

    def third(seconds: float) -> Outcome:
        raise KeyboardInterrupt

    check = Check(new_report(), written)
    stages = [
        Stage("first", 5, 1, lambda seconds: Outcome(True, "all is well")),
        Stage("long", 5000, 1000, second),
        Stage("second", 5, 1, second),
        Stage("third", 5, 1, third),
        Stage("fourth", 5, 1, second),
    ]
    with pytest.raises(KeyboardInterrupt):
        check.run(stages, time.monotonic() + 100)
    found = json.loads(written.read_text(encoding="utf-8"))["stages"]
    assert {name: (stage["verdict"], stage["said"]) for name, stage in found.items()} == {
        "first": ("passed", "all is well"),
        "long": ("not checked", "not begun: no time was left"),
        "second": ("failed", "one is wrong"),
        "third": ("not checked", "interrupted"),
    }
    assert found["second"]["last_lines"] == ["why"]
    assert not check.passed


def test_all_stages_together_fit_a_lease() -> None:
    plain, sanitized = check_stages(new_report()), check_stages(new_report(), sanitize=True)
    assert [stage.name for stage in plain] == ["operators", "graphs and model", "step", "decode", "prefill"]
    assert [stage.name for stage in sanitized[len(plain) :]] == ["memcheck", "racecheck"]
    assert limit_seconds(plain) <= 300
    baselines = baseline_stages(new_report())
    assert limit_seconds(baselines) <= 60 * BASELINES_MINUTES
    assert {stage.name: stage.longest for stage in baselines if "compiled" in stage.name} == {
        "eager-compiled-layer:float16": 90,
        "eager-compiled:float16": 180,
        "transformers-compiled:float16": 180,
        "prefill transformers-compiled:float16": 180,
    }
    in_layouts = layout_stages(new_report())
    assert limit_seconds(in_layouts) <= 60 * LAYOUTS_MINUTES
    for stage in [*sanitized, *baselines, *in_layouts]:
        assert 0 < stage.shortest <= stage.longest

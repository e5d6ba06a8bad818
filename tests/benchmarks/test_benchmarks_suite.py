"""The benchmark suite: what it runs, where its results go, and what it says of a program that fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from benchmarks import suite
from benchmarks.__main__ import main as benchmarks

ROOT = Path(__file__).resolve().parents[2]
FAILING = "none of them"  # what a command has in it that is to fail


def run_suite(
    monkeypatch: pytest.MonkeyPatch, reason: str, *arguments: str
) -> tuple[Result, list[list[str]]]:
    """The suite, with programs that write an empty result; the commands that it ran."""
    commands = []

    def pretend(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        fails = FAILING in " ".join(command)
        if "--output" in command and not fails:
            Path(command[command.index("--output") + 1]).write_text("{}", encoding="utf-8")
        return subprocess.CompletedProcess(command, int(fails))

    monkeypatch.setattr(suite.subprocess, "run", pretend)
    monkeypatch.setattr(suite, "why_no_result", lambda: reason)
    monkeypatch.setattr(suite, "random_model", lambda *_: None)
    return CliRunner().invoke(suite.main, ["--device", "cpu", *arguments]), commands


def test_results_of_a_tree_with_changes_do_not_get_into_the_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    result, commands = run_suite(monkeypatch, "the tree has uncommitted changes", "--only", "demo")
    assert result.exit_code == 0, result.output
    (said,) = [line for line in result.stdout.splitlines() if "not in the README" in line]
    folder = Path(
        said.removeprefix("the tree has uncommitted changes: the results are in ").partition(",")[0]
    )
    assert [file.name for file in folder.iterdir()] == ["demo.json"]
    assert ROOT not in folder.parents
    assert len(commands) == 1


def test_results_of_a_commit_are_kept_and_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(suite, "ROOT", tmp_path)
    result, commands = run_suite(monkeypatch, "", "--threads", "3", "--python", "llama.cpp=/a/python")
    assert result.exit_code == 0, result.output
    (folder,) = (tmp_path / "benchmarks" / "results").iterdir()
    assert {file.stem for file in folder.iterdir()} == {run.result for run in suite.SHORT}
    assert commands[-1][1:] == ["-m", "benchmarks", "readme", "--device", folder.name]
    decode = next(command for command in commands if "decode" in command)
    assert "llama.cpp=/a/python" in decode
    assert decode[decode.index("--threads") + 1] == "3"


def test_a_program_that_fails_is_named_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(suite, "ROOT", tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "FAILING", "benchmarks decode")
    result, commands = run_suite(monkeypatch, "")
    assert result.exit_code == 1
    assert "of the rest there is no result: decode-small failed" in result.output
    (folder,) = (tmp_path / "benchmarks" / "results").iterdir()
    assert {file.stem for file in folder.iterdir()} == {run.result for run in suite.SHORT} - {"decode-small"}
    assert "readme" in commands[-1]


def test_a_result_that_the_suite_does_not_know_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    result, commands = run_suite(monkeypatch, "", "--only", "decode-9b")
    assert result.exit_code == 2
    assert "--only is decode-9b; expected one of demo, decode-small" in result.output
    assert commands == []


@pytest.mark.parametrize("run", [*suite.SHORT, *suite.FULL, *suite.GPU_SHORT, *suite.GPU_FULL], ids=str)
def test_the_suites_programs_take_the_options_that_it_gives(run: suite.Run, tmp_path: Path) -> None:
    command = suite.command_of(run, tmp_path, tmp_path, 2, ("llama.cpp=/a/python",))
    (tmp_path / "0.7g-50").mkdir()
    (tmp_path / "0.7g-90").mkdir()
    (tmp_path / "small-50").mkdir()
    program = benchmarks.get_command(click.Context(benchmarks), run.program)
    program.make_context("program", command[4:])  # which parses, and runs nothing

"""Errors of commands: one line, the right exit status, the traceback only when asked for."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from adept_fast.commands.errors import OneLineErrors, OneLineErrorsGroup, one_line


@click.group(cls=OneLineErrorsGroup)
def group() -> None:
    """A group."""


@group.command()
@click.argument("message")
def fail(message: str) -> None:
    raise ValueError(message)


@group.command()
@click.argument("path")
def read(path: str) -> None:
    with open(path, encoding="utf-8") as file:
        file.read()


@group.command()
@click.option("--count", type=int, default=1)
def work(count: int) -> None:
    click.echo(f"worked {count}")


@group.command()
def bug() -> None:
    raise RuntimeError("a bug")


@group.group()
def nested() -> None:
    """A group in the group."""


@nested.command("fail")
def nested_fail() -> None:
    raise ValueError("deep")


@click.command(cls=OneLineErrors)
def alone() -> None:
    raise ValueError("alone")


@pytest.fixture
def runner(monkeypatch) -> CliRunner:
    monkeypatch.delenv("ADEPT_FAST_DEBUG", raising=False)
    return CliRunner()


def test_a_value_error_is_one_line_on_stderr(runner):
    result = runner.invoke(group, ["fail", "config.json: hidden_size is 0"])
    assert result.exit_code == 1
    assert result.stderr == "error: config.json: hidden_size is 0\n"
    assert result.stdout == ""


@pytest.mark.parametrize(("command", "arguments"), [(alone, []), (nested, ["fail"])])
def test_commands_alone_and_nested(runner, command, arguments):
    result = runner.invoke(command, arguments)
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)


def test_an_os_error_names_the_file_first(runner, tmp_path):
    result = runner.invoke(group, ["read", str(tmp_path / "absent")])
    assert result.exit_code == 1
    assert result.stderr == f"error: {tmp_path / 'absent'}: No such file or directory\n"


def test_usage_errors_exit_with_2(runner):
    result = runner.invoke(group, ["work", "--count", "many"])
    assert result.exit_code == 2
    assert "Usage:" in result.stderr
    assert runner.invoke(group, ["no-such-command"]).exit_code == 2


def test_success_is_left_alone(runner):
    result = runner.invoke(group, ["work", "--count", "3"])
    assert (result.exit_code, result.stdout, result.stderr) == (0, "worked 3\n", "")


@pytest.mark.parametrize("arguments", [["--debug", "fail", "why"], ["fail", "--debug", "why"]])
def test_debug_lets_the_error_through(runner, arguments):
    result = runner.invoke(group, arguments)
    assert isinstance(result.exception, ValueError)
    assert str(result.exception) == "why"


@pytest.mark.parametrize(("value", "shown"), [("1", ValueError), ("0", SystemExit), ("", SystemExit)])
def test_debug_by_environment(runner, value, shown):
    result = runner.invoke(group, ["fail", "why"], env={"ADEPT_FAST_DEBUG": value})
    assert isinstance(result.exception, shown)


def test_other_exceptions_are_bugs_and_stay_visible(runner):
    assert isinstance(runner.invoke(group, ["bug"]).exception, RuntimeError)


def test_broken_pipes_are_left_to_click(runner):
    @click.command(cls=OneLineErrors)
    def pipe() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    result = runner.invoke(pipe, [])
    assert "error:" not in result.stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\nlines  and\ttabs"), "two lines and tabs"),
        (ValueError("\x1b[31mred\x07"), "\\x1b[31mred\\x07"),
        (ValueError("name \udc80"), "name \\udc80"),
        (ValueError(), "ValueError"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (FileNotFoundError(2, "No such file or directory", "a/b"), "a/b: No such file or directory"),
    ],
)
def test_one_line(error, line):
    assert one_line(error) == line

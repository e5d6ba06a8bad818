"""Errors of commands: one line, the right exit status, the traceback only when asked for."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from adept_fast.commands.errors import (
    INTERRUPTED,
    MAX_CHARACTERS,
    OneLineErrors,
    OneLineErrorsGroup,
    one_line,
)


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


@pytest.mark.parametrize("long", ["x" * 5000, "\x1b" * 5000, "a b\n" * 5000, "é" * 601, "\u202e" * 10**6])
def test_a_long_message_keeps_its_ends(long):
    line = one_line(ValueError(f"model.bin: name is {long}; expected another"))
    assert len(line) == MAX_CHARACTERS
    assert line.startswith("model.bin: name is ")
    assert line.endswith("; expected another")
    assert " ... " in line
    assert line.isprintable()


def test_a_message_of_the_longest_length_is_left_as_it_is():
    assert one_line(ValueError("x" * MAX_CHARACTERS)) == "x" * MAX_CHARACTERS


def test_a_long_file_name_keeps_the_reason(runner):
    result = runner.invoke(group, ["read", "\x1b[31m" + "x" * 5000])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: \\x1b[31mxxx")
    assert result.stderr.endswith("xxx: File name too long\n")
    assert len(result.stderr) < MAX_CHARACTERS + 10


@pytest.mark.parametrize(
    "arguments",
    [["work", "--count", "\x1b[31m" + "9" * 5000], ["work", "x\n\x1b" * 3000], ["\x1b\n" * 3000], ["--\x1b"]],
)
def test_usage_errors_are_bounded_too(runner, arguments):
    result = runner.invoke(group, arguments)
    assert result.exit_code == 2
    usage, hint, blank, line = result.stderr.split("\n")[:-1]
    assert (usage[:6], hint[:3], blank, line[:7]) == ("Usage:", "Try", "", "Error: ")
    assert len(line) < MAX_CHARACTERS + 10
    assert line.isprintable()


def test_short_help_whoever_calls_a_command_first(runner):
    for command, arguments in ((alone, ["-h"]), (fail, ["-h"]), (group, ["fail", "-h"]), (group, ["-h"])):
        result = runner.invoke(command, arguments)
        assert (result.exit_code, result.stdout[:6]) == (0, "Usage:")


def test_help_is_not_cut(runner):
    @click.group(cls=OneLineErrorsGroup)
    def talkative() -> None:
        pass

    for number in range(40):
        talkative.command(f"command{number}", help="Say something.")(lambda: None)
    for arguments in ([], ["--help"]):
        assert "command39  Say something." in runner.invoke(talkative, arguments).output


def test_ctrl_c_has_an_exit_code_of_its_own(runner):
    @click.command(cls=OneLineErrors)
    def stopped() -> None:
        raise KeyboardInterrupt

    result = runner.invoke(stopped)
    assert (result.exit_code, result.output.strip()) == (INTERRUPTED, "")


def test_without_its_own_exit_a_command_raises_what_click_raises(runner):
    assert group.main(["work"], standalone_mode=False) is None
    with pytest.raises(click.ClickException, match="why"):
        group.main(["fail", "why"], standalone_mode=False)

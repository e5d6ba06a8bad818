"""Commands that report an error in one line, and with its traceback if ``--debug`` is given."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import IO, Any

import click

from adept_fast.commands.interrupts import INTERRUPTED
from adept_fast.commands.output import naming_stdout, prepare_output
from adept_fast.system.short_text import printable

MAX_CHARACTERS = 600  # of a message

_DEBUG = "adept_fast.debug"
_HEAD = MAX_CHARACTERS * 2 // 3
_CUT = " ... "


class CommandFailed(click.ClickException):
    """A failure: ``error: …`` on standard error, and exit status 1."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"error: {self.format_message()}", file=file or sys.stderr)


class OneLineErrors(click.Command):
    """A command whose ValueErrors and OSErrors end it with one line and exit status 1.

    It has a ``--debug`` option (environment: ``ADEPT_FAST_DEBUG=1``), with which they propagate instead.
    Usage errors keep click's form and its exit status 2, their message shortened as others are. Ctrl-C ends
    it with exit status 130.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Set for each command, not for the group: click keeps the help option of a command's first call.
        self.context_settings.setdefault("help_option_names", ["-h", "--help"])
        self.params.append(
            click.Option(
                ["--debug"],
                is_flag=True,
                envvar="ADEPT_FAST_DEBUG",
                expose_value=False,
                callback=_remember_debug,
                help="Show the traceback of an error.",
            )
        )

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        def run() -> Any:
            return super(OneLineErrors, self).main(
                args, prog_name, complete_var, False, windows_expand_args=windows_expand_args, **extra
            )

        if not standalone_mode:
            return run()
        sys.exit(_exit_status(run))

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        try:
            with naming_stdout():  # help is printed here
                return super().make_context(info_name, args, parent, **extra)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise CommandFailed(one_line(error)) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # click ends quietly when the reader of a pipe has gone
        except (ValueError, OSError) as error:
            if ctx.meta.get(_DEBUG):
                raise
            raise CommandFailed(one_line(error)) from error


class OneLineErrorsGroup(OneLineErrors, click.Group):
    """A group of such commands, which its ``command`` and ``group`` decorators make."""

    command_class = OneLineErrors
    group_class = type


def show_error(error: Exception) -> None:
    """Print an error on standard error; the command goes on."""
    CommandFailed(one_line(error)).show()


def one_line(error: BaseException | str) -> str:
    """The message of an error, as one line of at most MAX_CHARACTERS that is safe to print on a terminal."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        message = f"{error.filename}: {error.strerror}"
    else:
        message = str(error) or type(error).__name__
    if len(message) > 2 * MAX_CHARACTERS:  # the rest is cut out below anyway
        message = message[:MAX_CHARACTERS] + _CUT + message[-MAX_CHARACTERS:]
    line = printable(" ".join(message.split()))
    if len(line) <= MAX_CHARACTERS:
        return line
    # The beginning names the thing, the end what is expected; the long part is a value between them.
    return line[:_HEAD] + _CUT + line[len(line) - (MAX_CHARACTERS - _HEAD - len(_CUT)) :]


def _exit_status(run: Callable[[], Any]) -> int:
    """The exit status of a command that click runs without handling errors, which are printed here."""
    try:
        if sys.stdout is None:  # all results would be lost
            raise CommandFailed("stdout is closed; expected it open (>/dev/null drops what is printed)")
        prepare_output()
        status = run()
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except click.ClickException as error:
        _bounded(error).show(sys.stderr)
        return error.exit_code
    return status if isinstance(status, int) else 0  # an argument of ctx.exit


def _bounded(error: click.ClickException) -> click.ClickException:
    """The same error with its message in one line; a command's help, which click may raise too, as it is."""
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
        return error
    message = one_line(error.format_message())
    if isinstance(error, click.UsageError):
        return click.UsageError(message, error.ctx)
    return CommandFailed(message)


def _remember_debug(ctx: click.Context, _parameter: click.Parameter, debug: bool) -> None:
    # A group and its commands share meta, so the option works before and after a command's name.
    ctx.meta[_DEBUG] = debug or ctx.meta.get(_DEBUG, False)

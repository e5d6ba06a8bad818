"""Commands that tell the user what went wrong in one line, and programmers everything with ``--debug``."""

from __future__ import annotations

from typing import IO, Any

import click

_DEBUG = "adept_fast.debug"


class CommandFailed(click.ClickException):
    """A failure to be shown as ``error: …`` on standard error, with exit status 1."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"error: {self.format_message()}", file=file, err=file is None)


class OneLineErrors(click.Command):
    """A command whose ValueErrors and OSErrors end it with one line and exit status 1.

    It has a ``--debug`` option (environment: ``ADEPT_FAST_DEBUG=1``), with which they propagate instead.
    Usage errors keep click's form and its exit status 2.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
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
    """A group of such commands; those made with its ``command`` and ``group`` decorators are so too."""

    command_class = OneLineErrors
    group_class = type


def one_line(error: BaseException) -> str:
    """What an error says, as one line that is safe to print on a terminal."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        message = f"{error.filename}: {error.strerror}"
    else:
        message = str(error) or type(error).__name__
    # File and tensor names come from files that may be hostile: no escape sequence may reach the terminal.
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in " ".join(message.split())
    )


def _remember_debug(ctx: click.Context, _parameter: click.Parameter, debug: bool) -> None:
    # meta is shared by a group and its commands, so the option works before and after a command's name.
    ctx.meta[_DEBUG] = debug or ctx.meta.get(_DEBUG, False)

"""Questions, from standard input."""

from __future__ import annotations

import sys

import click

from adept_fast.system.text_input import LineReader


def ask(lines: LineReader) -> str | None:
    """The next question; None at the end of the conversation. Terminals get a prompt, on stderr."""
    while True:
        try:
            if sys.stdin.isatty():
                click.echo("human: ", nl=False, err=True)
            question = lines.read()
        except KeyboardInterrupt:
            click.echo("\n(Ctrl-D leaves)", err=True)
            continue
        if question is None:
            click.echo(err=True)
        return question


def say_forgotten(count: int) -> None:
    """Say that as many turns at the beginning of a conversation are not in the prompt."""
    click.echo(f"(the context is full: the first {count} turns are forgotten)", err=True)

"""Printing to standard output."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import Any

import click

from adept_fast.system.json_text import json_text

# For characters that the encoding lacks, and for lone surrogates: after an error the rest would be lost.
_ERRORS = "backslashreplace"


def prepare_output() -> None:
    """Write characters that the encodings of stdout and stderr lack as backslash escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def print_text(text: str, *, newline: bool = True) -> None:
    """Print text at once. Raises OSError, which names stdout unless the reader of a pipe has gone."""
    with naming_stdout():
        # The stream is given, since click would replace one in ASCII by one in UTF-8.
        click.echo(text, file=sys.stdout, nl=newline)


def print_json(value: Any) -> None:
    """Print a line of JSON: numbers that are not finite as null, characters without an encoding escaped."""
    line = json_text(value)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        line = json_text(value, ascii_only=True)
    print_text(line)


@contextlib.contextmanager
def naming_stdout() -> Iterator[None]:
    """Add the name stdout to an OSError; click handles a reader that has gone."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, "stdout") from error

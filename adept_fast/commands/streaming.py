"""Printing text while it is generated."""

from __future__ import annotations

from adept_fast.chat.format import strip_answer
from adept_fast.commands.output import print_text
from adept_fast.engine.text_stream import TextStream


def print_stream(stream: TextStream, *, as_chat: bool) -> str:
    """Print the pieces to stdout, then a newline; returns the text. Ctrl-C ends it, also within a piece."""
    printed = ""
    try:
        for piece in strip_answer(stream) if as_chat else stream:
            printed += piece  # first, as Ctrl-C may come right after it was printed
            print_text(piece, newline=False)
    except KeyboardInterrupt:
        stream.stop()
    print_text("")
    return printed

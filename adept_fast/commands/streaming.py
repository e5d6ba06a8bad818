"""Printing text as it is made."""

from __future__ import annotations

from adept_fast.chat.format import strip_answer
from adept_fast.commands.output import print_text
from adept_fast.engine.text_stream import TextStream


def print_stream(stream: TextStream, *, as_chat: bool) -> str:
    """Print the pieces to stdout, then a newline; returns what was printed before it.

    Ctrl-C ends the text, also when it comes while a piece is being printed.
    """
    printed = ""
    try:
        for piece in strip_answer(stream) if as_chat else stream:
            print_text(piece, newline=False)
            printed += piece
    except KeyboardInterrupt:
        stream.stop()
    print_text("")
    return printed

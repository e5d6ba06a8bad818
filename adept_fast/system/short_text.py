"""Values of untrusted files in messages: any value, in at most some hundred characters."""

from __future__ import annotations

import reprlib

_MAX_CHARACTERS = 150


class _ShortRepr(reprlib.Repr):
    def repr_int(self, value: int, level: int) -> str:
        # Python refuses to spell out integers of more than some thousand digits.
        if value.bit_length() > 1100:
            return f"an integer of {value.bit_length()} bits"
        return super().repr_int(value, level)


_short = _ShortRepr()
_short.maxstring = _short.maxother = 60


def short_repr(value: object) -> str:
    """As ``repr``, with the middle left out where that is long."""
    return shortened(_short.repr(value))


def shortened(text: str) -> str:
    """The text in one printable line, with the middle left out where it is long."""
    if len(text) > _MAX_CHARACTERS:
        text = f"{text[: _MAX_CHARACTERS - 30]}…{text[-29:]}"
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )

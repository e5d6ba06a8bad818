"""Values and text in messages, also from untrusted files: short, and on one printable line."""

from __future__ import annotations

import reprlib
from typing import Any

_MAX_CHARACTERS = 150
_MAX_BITS = 128  # of an integer in digits


class _ShortRepr(reprlib.Repr):
    def repr_int(self, value: int, level: int) -> str:
        # Python refuses to write integers of more than some thousand digits.
        if value.bit_length() > _MAX_BITS:
            return f"{'a negative' if value < 0 else 'an'} integer of {value.bit_length()} bits"
        return super().repr_int(value, level)

    def repr_ndarray(self, value: Any, level: int) -> str:
        is_known = value.ndim == 0 and not getattr(value, "is_meta", False)
        return f"{type(value).__name__} of {value.dtype} and shape {list(value.shape)}" + (
            f" ({value.tolist()!r:.40})" if is_known else ""
        )

    repr_Tensor = repr_Parameter = repr_ndarray  # noqa: N815 (reprlib finds methods by names of types)


_short = _ShortRepr()
_short.maxstring = _short.maxother = 60


def short_repr(value: object) -> str:
    """As ``repr``, with the middle left out if it is long; the dtype and shape of an array."""
    return shortened(_short.repr(value))


def shortened(text: str) -> str:
    """The text on one printable line, with the middle left out if it is long."""
    if len(text) > _MAX_CHARACTERS:
        text = f"{text[: _MAX_CHARACTERS - 30]}…{text[-29:]}"
    return printable(text)


def printable(text: str) -> str:
    """The text with escapes for characters that are not printable, newlines too.

    An escape sequence in the name of a file or a tensor must not reach the terminal.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )

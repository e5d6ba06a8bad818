r"""Backslash escapes in the values of options: ``\n``, ``\t``, ``\r``, ``\\``, ``\xHH`` and ``\uHHHH``."""

from __future__ import annotations

import re

_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.|$)", re.DOTALL)
_CHARACTERS = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def unescape(text: str) -> str:
    """Replace the escapes. Raises ValueError for an unknown one, and for a lone surrogate."""
    spelled = _ESCAPE.sub(_character, text)
    surrogates = [character for character in spelled if "\ud800" <= character <= "\udfff"]
    if surrogates:
        raise ValueError(f"{text!r} has the lone surrogate U+{ord(surrogates[0]):04X}, which no text holds")
    return spelled


def _character(escape: re.Match[str]) -> str:
    code = escape[1]
    if len(code) > 1:
        return chr(int(code[1:], 16))
    if code not in _CHARACTERS:
        raise ValueError(
            rf"{escape.string!r} has the escape {escape[0]!r}; expected \n, \t, \r, \\, \xHH or \uHHHH"
        )
    return _CHARACTERS[code]

"""JSON from files that are not trusted: regular, of bounded size and depth, with nothing ambiguous in it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from adept_fast.system.file_limits import max_bytes
from adept_fast.system.regular_file import FileError, read_regular, why_unreadable
from adept_fast.system.short_text import short_repr, shortened
from adept_fast.system.text_input import TextError, decode_text

MAX_BRACKETS = 50_000  # of what a client sent, texts' own included: lists and objects cost most of the time
_MAX_DEPTH = 64
_MAX_DIGITS = 308  # any integer of that length is below the largest float


class _FaultError(ValueError):
    """A fault in a document that is valid by JSON's grammar."""


class _NoNumber:
    """A value that is no finite number, or has too many digits, until its key is known for the message."""

    def __init__(self, text: str) -> None:
        self.text = text


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file. Raises FileError, one sentence that names the file, if there is none.

    The text is read by the rule of ``text_input``. Refused are files that are not regular or larger than
    their kind may be, a key that comes twice in an object, NaN, infinities and numbers beyond a float's
    range, and nesting of more than 64 levels.
    """
    return parse_json(read_regular(path, max_bytes(path)), str(path))


def parse_json(contents: bytes, label: str) -> dict[str, Any]:
    """As ``read_json``, from the bytes of the file that ``label`` names."""
    try:
        values = json.loads(
            decode_text(contents, label),
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_NoNumber,
            object_pairs_hook=_object,
        )
        _check(values)
    except _FaultError as error:
        raise FileError(f"{label}: {error}") from error
    except TextError as error:
        raise FileError(str(error)) from error
    except RecursionError as error:
        raise FileError(f"{label}: {_too_deep()}") from error
    except json.JSONDecodeError as error:
        raise FileError(why_unreadable(label, contents, f"not valid JSON ({error})")) from error
    if not isinstance(values, dict):
        raise FileError(f"{label}: holds a {type(values).__name__}; expected a JSON object")
    return values


def _integer(text: str) -> int | _NoNumber:
    return int(text) if len(text) <= _MAX_DIGITS else _NoNumber(text)


def _float(text: str) -> float | _NoNumber:
    number = float(text)
    return number if math.isfinite(number) else _NoNumber(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _FaultError(f"has the key {short_repr(twice)} twice in one object; expected it once")
    return values


def _check(values: Any) -> None:
    """Raises _FaultError for a number that is none and for nesting that is too deep."""
    level: list[tuple[str, Any]] = [("the document", values)]
    for _ in range(_MAX_DEPTH + 1):
        if not level:
            return
        below: list[tuple[str, Any]] = []
        for name, value in level:
            children: Iterable[tuple[str, Any]] = ()
            if isinstance(value, dict):
                children = value.items()
            elif isinstance(value, list):
                children = ((name, child) for child in value)
            elif isinstance(value, _NoNumber):
                raise _FaultError(
                    f"{shortened(name)} is {_bounded(value.text)}; expected a finite number of at "
                    f"most {_MAX_DIGITS} digits"
                )
            below += [child for child in children if isinstance(child[1], (dict, list, _NoNumber))]
        level = below
    raise _FaultError(_too_deep())


def _bounded(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:20]}… ({len(text)} characters)"


def _too_deep() -> str:
    return f"is nested too deeply; expected at most {_MAX_DEPTH} levels"

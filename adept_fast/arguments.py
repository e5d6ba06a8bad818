"""Arguments of the public functions: checked, and turned into Python's own types.

Scalars and arrays of numpy and torch count as the numbers in them. A bool is no number, and a number is no
bool. Each function raises ParameterError with the argument's name, its value and the allowed values.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adept_fast.system.short_text import short_repr


class ParameterError(ValueError):
    """A parameter of another type, or outside its range."""


def integer(name: str, value: object, lowest: int, highest: int = 2**31 - 1) -> int:
    found = _as_integer(value)
    if found is None or not lowest <= found <= highest:
        raise ParameterError(f"{name} is {short_repr(value)}; expected an integer from {lowest} to {highest}")
    return found


def number(name: str, value: object, in_range: Callable[[float], bool], expected: str) -> float:
    """A finite number; ``expected`` describes the range."""
    found = _as_number(value)
    if found is None or not np.isfinite(found) or not in_range(found):
        raise ParameterError(f"{name} is {short_repr(value)}; expected {expected}")
    return found


def flag(name: str, value: object) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise ParameterError(f"{name} is {short_repr(value)}; expected True or False")
    return bool(value)


def optional_flag(name: str, value: object) -> bool | None:
    if value is not None and not isinstance(value, (bool, np.bool_)):
        raise ParameterError(f"{name} is {short_repr(value)}; expected True, False or None")
    return None if value is None else bool(value)


def one_of(name: str, value: object, allowed: Collection[str]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ParameterError(f"{name} is {short_repr(value)}; expected {', '.join(allowed)}")
    return str(value)


def optional_text(name: str, value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ParameterError(f"{name} is {short_repr(value)}; expected a str or None")
    return value


def path_or_str(name: str, value: object, expected: str = "a str or a Path") -> str | Path:
    """A str unchanged, as it may be a name; any other path-like value as a Path."""
    if isinstance(value, str):
        return value
    if not isinstance(value, os.PathLike) or isinstance(os.fspath(value), bytes):
        raise ParameterError(f"{name} is {short_repr(value)}; expected {expected}")
    return Path(value)


def entries(name: str, value: object, expected: str) -> list[Any]:
    """The entries of a list, or of another iterable."""
    no_list = isinstance(value, (str, bytes, bytearray, memoryview, Mapping, Set))
    has_none = isinstance(value, (Tensor, np.ndarray)) and (value.ndim == 0 or _is_meta(value))
    if no_list or has_none or not isinstance(value, Iterable):
        raise ParameterError(f"{name} is {short_repr(value)}; expected {expected}")
    return list(value)


def token_ids(name: str, value: object, expected: str = "token ids") -> list[int]:
    """Ids of any integer type, in a list or an array of shape [tokens]; the vocabulary is not considered."""
    if isinstance(value, (Tensor, np.ndarray)):
        if value.ndim != 1 or _is_meta(value) or not (_is_integral(value) or not len(value)):
            raise ParameterError(
                f"{name} is {short_repr(value)}; expected {expected}: integers of shape [tokens]"
            )
        return [int(token_id) for token_id in value.tolist()]
    found = []
    for token_id in entries(name, value, expected):
        if (whole := _as_integer(token_id)) is None:
            raise ParameterError(f"{name} is {short_repr(value)}; expected {expected}, which are integers")
        found.append(whole)
    return found


def _as_integer(value: object) -> int | None:
    value = _scalar(value)
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _as_number(value: object) -> float | None:
    value = _scalar(value)
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        return None
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _scalar(value: object) -> object:
    """The value of an array without dimensions; anything else unchanged."""
    if isinstance(value, (Tensor, np.ndarray)):
        return None if value.ndim or _is_meta(value) else value.tolist()
    return value


def _is_meta(value: Tensor | np.ndarray[Any, Any]) -> bool:
    return isinstance(value, Tensor) and value.is_meta


def _is_integral(value: Tensor | np.ndarray[Any, Any]) -> bool:
    if isinstance(value, Tensor):
        return not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    return np.issubdtype(value.dtype, np.integer)

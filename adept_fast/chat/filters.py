"""The filters and methods that a chat template may use, each with a limit on its result."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS as JINJA_FILTERS

from adept_fast.chat import budget as limits
from adept_fast.chat.budget import TemplateLimitError, bounded, budget

_WIDEST_INDENT = 64  # characters
_MAX_PARTS = 10_000

# Names, separated by spaces.
_PLAIN_FILTERS = (
    "abs capitalize count d default dictsort e escape first float forceescape groupby int items last length "
    "list lower map max min reject rejectattr reverse round safe select selectattr sort string title trim "
    "truncate unique upper wordcount"
)
_CHECKED_FILTERS = "batch center format indent join replace slice sum"
_STRING_METHODS = (
    "capitalize casefold center count endswith find index isalnum isalpha isascii isdecimal isdigit "
    "isidentifier islower isnumeric isprintable isspace istitle isupper join ljust lower lstrip partition "
    "removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines "
    "startswith strip swapcase title upper zfill"
)
_METHODS = (
    (str, frozenset(_STRING_METHODS.split())),
    (dict, frozenset(("copy", "get", "items", "keys", "values"))),
    ((list, tuple), frozenset(("copy", "count", "index"))),
    ((int, float), frozenset(("bit_length", "is_integer"))),
)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it for chat templates, without escapes for HTML."""
    widest = max(len(indent) if isinstance(indent, str) else indent or 0, *map(len, separators or ("",)))
    if widest > _WIDEST_INDENT:
        raise TemplateLimitError(
            f"tojson indents or separates by {widest}; expected at most {_WIDEST_INDENT}"
        )
    limits.size_of(value)
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


FILTERS: dict[str, Callable[..., Any]] = {
    **{name: JINJA_FILTERS[name] for name in f"{_PLAIN_FILTERS} {_CHECKED_FILTERS}".split()},
    "tojson": _tojson,
}


def bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter as a step of the budget, with checks of its arguments and its result."""
    check = _CHECKS.get(name)
    leading = 1 if hasattr(function, "jinja_pass_arg") else 0  # jinja's own argument comes first

    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        budget().step()
        if check is not None:
            value, *rest = args[leading:]
            args = (*args[:leading], check(value, *rest, **kwargs), *rest)
        return bounded(function(*args, **kwargs))

    return counted


def checked_arguments(method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The positional arguments for a method of a built-in type.

    Raises SecurityError if a template may not call it, TemplateLimitError if its result could be too large.
    """
    owner, name = method.__self__, method.__name__
    for kinds, allowed in _METHODS:
        if isinstance(owner, kinds) and name not in allowed:
            raise SecurityError(f"a template may not call {type(owner).__name__}.{name}")
    if not isinstance(owner, str):
        return args
    if name in ("center", "ljust", "rjust", "zfill"):
        _check_width(owner, *args, **kwargs)
    elif name == "replace":
        _check_replaced(owner, *args, **kwargs)
    elif name == "join" and args:
        values = list(args[0])
        limits.require_joined(owner, values)
        return (values, *args[1:])
    return args


def _check_width(value: Any, width: Any = 80, *_rest: Any, **_named: Any) -> Any:
    if isinstance(width, int):
        limits.require_size(width)
    return value


def _check_parts(value: Any, parts: Any = None, *_rest: Any, **named: Any) -> Any:
    for count in (parts, *named.values()):
        if isinstance(count, int) and count > _MAX_PARTS:
            raise TemplateLimitError(f"a list is cut by {count}; expected at most {_MAX_PARTS}")
    return value


def _check_indent(value: Any, width: Any = 4, *_rest: Any, **_named: Any) -> Any:
    by = len(width) if isinstance(width, str) else width if isinstance(width, int) else 0
    limits.require_size(len(str(value)) + by * (len(str(value).splitlines()) + 1))
    return value


def _check_formatted(value: Any, *values: Any, **named: Any) -> Any:
    limits.require_formatted(str(value), [*values, *named.values()])
    return value


def _check_joined(value: Any, d: Any = "", *_rest: Any, **_named: Any) -> Any:
    values = list(value)
    limits.require_joined(str(d), values)
    return values


def _check_replaced(value: Any, old: Any = "", new: Any = "", *_rest: Any, **_named: Any) -> Any:
    limits.require_replaced(str(value), str(old), str(new))
    return value


def _check_sum(value: Any, attribute: Any = None, start: Any = 0) -> Any:
    if not isinstance(start, (int, float)):
        raise TemplateLimitError("sum has a start that is no number")
    return value


_CHECKS: dict[str, Callable[..., Any]] = {
    "batch": _check_parts,
    "center": _check_width,
    "format": _check_formatted,
    "indent": _check_indent,
    "join": _check_joined,
    "replace": _check_replaced,
    "slice": _check_parts,
    "sum": _check_sum,
}

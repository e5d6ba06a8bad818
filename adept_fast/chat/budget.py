"""Limits on one rendering of a template, and the sizes of its values."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

MAX_SOURCE = 2**16  # characters of a template
MAX_STEPS = 2**17  # loop rounds, calls, filters and tests
MAX_SIZE = 2**20  # characters of one value, and of the whole text
MAX_SECONDS = 1.0  # of this thread's processor time
MAX_DEPTH = 64  # of calls inside calls
_ELEMENT_SIZE = 16  # characters that an element of a list counts as
_MAX_BITS = 4096  # of an integer
_MAX_FORMAT_WIDTH = 4  # digits

_VIEWS: tuple[type, ...] = (type({}.items()), type({}.keys()), type({}.values()))
_CONTAINERS: tuple[type, ...] = (list, tuple, set, frozenset, *_VIEWS)
_LONG_WIDTH = re.compile(rf"\*|\d{{{_MAX_FORMAT_WIDTH + 1}}}")
_NESTED_FIELD = re.compile(r"\{[^{}]*\{")


class TemplateLimitError(ValueError):
    """A template that exceeds a limit."""


class Budget:
    """The steps, characters and seconds that one rendering used."""

    def __init__(self) -> None:
        self._steps = 0
        self._written = 0
        self._depth = 0
        self._deadline = time.thread_time() + MAX_SECONDS

    def step(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise TemplateLimitError(f"it takes more than {MAX_STEPS} steps")
        if time.thread_time() > self._deadline:
            raise TemplateLimitError(f"it takes more than {MAX_SECONDS:g} s of processor time")

    def write(self, characters: int) -> None:
        self._written += characters
        if self._written > MAX_SIZE:
            raise TemplateLimitError(f"it writes more than {MAX_SIZE} characters")

    def enter(self) -> None:
        """Begin a call; ``leave`` ends it."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise TemplateLimitError(f"its calls are nested more than {MAX_DEPTH} deep")

    def leave(self) -> None:
        self._depth -= 1


_budget: ContextVar[Budget] = ContextVar("template_budget")


def budget() -> Budget:
    """The budget of the current rendering. Raises TemplateLimitError if there is none, as in compilation."""
    try:
        return _budget.get()
    except LookupError as error:
        raise TemplateLimitError("nothing is rendered now") from error


@contextmanager
def budgeted() -> Iterator[Budget]:
    """The budget of one rendering."""
    token = _budget.set(Budget())
    try:
        yield _budget.get()
    finally:
        _budget.reset(token)


def require_size(size: int) -> None:
    """Raises TemplateLimitError for more characters than a value may have."""
    if size > MAX_SIZE:
        raise TemplateLimitError(
            f"a value has more than {MAX_SIZE} characters, an element counted as {_ELEMENT_SIZE}"
        )


def size_of(value: Any) -> int:
    """Characters of a value and its elements, each as often as it would be written.

    Raises TemplateLimitError if there are more than a value may have.
    """
    size, pending = 0, [value]
    while pending:
        item = pending.pop()
        size += _ELEMENT_SIZE
        if isinstance(item, str):
            size += len(item)
        elif isinstance(item, int):
            size += item.bit_length() // 3
        elif isinstance(item, dict):
            pending += item.keys()
            pending += item.values()
        elif isinstance(item, _CONTAINERS):
            pending += [*item]  # type: ignore[misc]
        require_size(size + _ELEMENT_SIZE * len(pending))
    return size


def bounded(value: Any) -> Any:
    """The value, unless it is too large; each element of an iterator counts as a step."""
    if isinstance(value, Iterator):
        return _counted(value)
    size_of(value)
    return value


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        budget().step()
        yield value


def require_integer(bits: int) -> None:
    """Raises TemplateLimitError for an integer that is too long."""
    if bits > _MAX_BITS:
        raise TemplateLimitError(f"an integer has more than {_MAX_BITS} bits")


def require_replaced(text: str, old: str, new: str) -> None:
    """Raises TemplateLimitError if the result would be too long."""
    count = text.count(old) if old else len(text) + 1
    require_size(len(text) + count * len(new))


def require_joined(separator: str, values: list[Any]) -> None:
    """Raises TemplateLimitError if the result would be too long."""
    require_size(size_of(values) + len(separator) * len(values))


def require_formatted(pattern: str, values: Any) -> None:
    """Raises TemplateLimitError if the result could be too long."""
    if _LONG_WIDTH.search(pattern):
        raise TemplateLimitError(f"a format has a width of more than {_MAX_FORMAT_WIDTH} digits")
    if _NESTED_FIELD.search(pattern.replace("{{", "")):
        raise TemplateLimitError("a format takes a width from its arguments")
    fields = pattern.count("%") + pattern.count("{")
    require_size(len(pattern) + fields * (size_of(values) + 10**_MAX_FORMAT_WIDTH))

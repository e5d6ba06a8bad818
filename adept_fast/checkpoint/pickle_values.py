"""Values of a pickle that are not plain Python ones: each keeps a name, and none can be called."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice

import torch

from adept_fast.system.short_text import short_repr

_MAX_SHOWN = 120  # characters of a name in a message
_MAX_SEARCHED = 1000  # values searched for one that was left unread


class Global:
    """A class or a function that a pickle names; it is not imported."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name

    @property
    def path(self) -> str:
        """The name with its module, printable, shortened if it is long."""
        return printable(f"{self.module}.{self.name}" if self.module else self.name)


class PickledObject:
    """An object whose class or function is not known here, so that it was not built.

    ``maker`` is the class or function; ``subject`` is its first argument if that is a class too. ``state`` is
    the value from which the pickle sets its attributes, None if there is none.
    """

    __slots__ = ("maker", "state", "subject")

    def __init__(self, maker: Global, subject: Global | None = None) -> None:
        self.maker = maker
        self.subject = subject
        self.state: object = None

    @property
    def class_name(self) -> str:
        """The name of its class, or the name of the function that builds it with the class in parentheses."""
        return f"{self.maker.path}({self.subject.path})" if self.subject else self.maker.path

    @property
    def attributes(self) -> dict[object, object] | None:
        """Its attributes if its state is a dict, None otherwise."""
        return self.state if isinstance(self.state, dict) else None


class UnhashedKey:
    """Stands in a dict for a key that is no text: it equals itself alone, and its value is never hashed."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


@dataclass
class PickledStorage:
    """A reference to the record ``key`` of a torch file; ``dtype`` is None if it is one of plain bytes."""

    dtype: torch.dtype | None
    key: str
    elements: int


@dataclass
class PickledTensor:
    """A view of a storage, unchecked. ``flaw`` is a clause with the reason that it is no plain tensor."""

    storage: PickledStorage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    flaw: str | None = None

    @property
    def span(self) -> int:
        """The number of elements of the storage from its first to its last, inclusive."""
        return 1 + sum((size - 1) * by for size, by in zip(self.shape, self.stride, strict=True))

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements lie one after the other, the last dimension's next to each other."""
        below = [math.prod(self.shape[at + 1 :]) for at in range(len(self.shape))]
        return all(
            size == 1 or by == step for size, by, step in zip(self.shape, self.stride, below, strict=True)
        )


def printable(text: str) -> str:
    """A name out of a file, fit for one line of a terminal."""
    cut = text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
    return cut if cut.isprintable() else ascii(cut)[1:-1]


def described(value: object) -> str:
    """A value for a message, after "is", in bounded time and length."""
    if isinstance(value, UnhashedKey):
        return described(value.value)
    if isinstance(value, PickledObject):
        return f"an object of {value.class_name}, which was left unread"
    if isinstance(value, Global):
        return f"the class or function {value.path}"
    if isinstance(value, PickledTensor):
        return "a tensor"
    if isinstance(value, PickledStorage):
        return "a storage"
    if isinstance(value, (dict, list, tuple)):
        unread = _unread_inside(value)
        inside = f" that holds {described(unread)}" if unread else ""
        return f"a {type(value).__name__} of length {len(value)}{inside}"
    return short_repr(value)


def _unread_inside(value: object) -> PickledObject | None:
    """An unread object among the values inside. The search is bounded, as values may contain themselves."""
    waiting: list[object] = [value]
    left = _MAX_SEARCHED
    while waiting:
        at = waiting.pop()
        if isinstance(at, PickledObject):
            return at
        if isinstance(at, (dict, list, tuple)):
            values = list(islice(at.values() if isinstance(at, dict) else at, left))
            left -= len(values)
            waiting += values
    return None

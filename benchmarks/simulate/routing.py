"""Routing: which replica gets a request."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

from benchmarks.simulate.request import Request

# From a request, the replicas that take requests (at least one, ascending) and the requests that each replica
# was sent and has not answered, to one of these replicas.
Rule = Callable[[Request, Sequence[int], Sequence[int]], int]


def least_outstanding(request: Request, alive: Sequence[int], outstanding: Sequence[int]) -> int:
    """The one with the fewest unanswered requests, the first of equals."""
    return min(alive, key=outstanding.__getitem__)


class RoundRobin:
    """One after the other."""

    def __init__(self) -> None:
        self._next = 0

    def __call__(self, request: Request, alive: Sequence[int], outstanding: Sequence[int]) -> int:
        chosen = min((each for each in alive if each >= self._next), default=alive[0])
        self._next = chosen + 1
        return chosen


class PrefixAffine:
    """A conversation stays with one replica, as long as that has a free slot; else as ``least_outstanding``.

    Each conversation ranks the replicas by a hash, and takes the first that is alive, so that a replica that
    dies moves its own conversations only.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots

    def __call__(self, request: Request, alive: Sequence[int], outstanding: Sequence[int]) -> int:
        home = max(alive, key=lambda each: zlib.crc32(f"{request.conversation} {each}".encode()))
        if outstanding[home] < self._slots:
            return home
        return least_outstanding(request, alive, outstanding)


def rule_of(name: str, slots: int) -> Rule:
    """By its name on the command line."""
    rules: dict[str, Callable[[], Rule]] = {
        "least": lambda: least_outstanding,
        "round-robin": RoundRobin,
        "prefix": lambda: PrefixAffine(slots),
    }
    return rules[name]()


RULES = ("least", "round-robin", "prefix")

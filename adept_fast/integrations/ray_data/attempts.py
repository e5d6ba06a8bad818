"""Attempts: how often workers have begun each share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import ray

from adept_fast.integrations.ray_data.cluster import RayError, this_machine

_MAX_ATTEMPTS = 5


class _Counts:
    """Counts by name, in a process of its own that outlives the workers."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def next(self, name: int) -> int:
        self._counts[name] += 1
        return self._counts[name]


def limited_attempts(limit: int = _MAX_ATTEMPTS) -> Callable[[int, int], None]:
    """A function for workers to call with the numbers of the first and the last line of a share they begin.

    Ray begins a share again whenever its worker has died. The function raises RayError if it has been begun
    more than ``limit`` times, as it may be what kills them.
    """
    here = {"ray.io/node-id": this_machine()}
    counts = ray.remote(_Counts).options(num_cpus=0, label_selector=here).remote()

    def begin(first: int, last: int) -> None:
        if ray.get(counts.next.remote(first)) > limit:
            raise RayError(
                f"lines {first} and {last} and those with them: {limit} workers have died, one after the "
                f"other; expected one to answer them"
            )

    return begin

"""Turns: one thread works at a time, and nobody waits forever."""

from __future__ import annotations

import random
import sys
import threading
from contextlib import suppress

import pytest
from thread_calls import Call

from adept_fast.engine.turn import NestedRunError, Turns


@pytest.mark.parametrize("seed", range(4))
def test_whatever_threads_do_one_has_the_turn(seed: int) -> None:
    """Holds, work for others, work that is cut short: nobody waits forever, and no two work at once."""
    turns, count, each = Turns(), 6, 300
    inside: list[int] = []
    done: set[int] = set()
    together = threading.Barrier(count)

    def work_on(mark: int) -> None:
        assert inside == []
        inside.append(mark)
        try:
            if random.random() < 0.1:
                raise ZeroDivisionError
            done.update(waiting)
        finally:
            inside.remove(mark)

    waiting: set[int] = set()

    def work(first: int) -> None:
        chosen = random.Random(1000 * seed + first)
        together.wait(timeout=60)
        for at in range(each):
            mark = first * each + at
            if chosen.random() < 0.3:
                with turns.hold():
                    assert inside == []
                    inside.append(mark)
                    inside.remove(mark)
                continue
            waiting.add(mark)
            while mark not in done:
                with suppress(ZeroDivisionError):
                    turns.work_until(lambda: mark in done, lambda: work_on(mark))  # noqa: B023
            waiting.discard(mark)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        calls = [Call(lambda first=first: work(first)) for first in range(count)]  # type: ignore[misc]
        for call in calls:
            call.result()
    finally:
        sys.setswitchinterval(interval)
    assert not inside


def test_a_turn_that_was_left_is_free() -> None:
    turns = Turns()

    def nested() -> None:
        with turns.hold(), turns.hold():
            pass

    with pytest.raises(NestedRunError):
        Call(nested).result()
    with pytest.raises(ZeroDivisionError), turns.hold():
        raise ZeroDivisionError
    with turns.hold():
        pass

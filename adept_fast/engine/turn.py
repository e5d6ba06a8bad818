"""Turns: one thread at a time works on a model and its cache; the others wait for it, or for its results.

Ctrl-C and the garbage collector can cut any call short. So the turn belongs to an object on the stack of the
thread that has it: if the call is gone, so is the turn, even if the release itself was interrupted.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_FALLBACK_SECONDS = 0.5  # between checks for a turn that ended without waking the other threads


class NestedRunError(RuntimeError):
    """A call began inside another one of the same thread, in a callback or a signal handler."""


class _Turn:
    """Held by the thread that works; its death ends the turn."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.is_over = False


class Turns:
    """Gives the turn to one thread at a time. After a fork, a turn of another thread is over in the child.

    Args:
        after_fork: what else the child does, before it works.
    """

    def __init__(self, after_fork: Callable[[], None] = lambda: None) -> None:
        self._after_fork = after_fork
        self._changed = threading.Condition()
        self._current: weakref.ref[_Turn] | None = None
        _all.add(self)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Wait for the turn, and have it until the end of the ``with``. Raises NestedRunError."""
        turn = _Turn()
        try:
            while not self._take(turn, lambda: False):
                pass
            yield
        finally:
            self._end(turn)

    def work_until(self, is_done: Callable[[], bool], work: Callable[[], None]) -> None:
        """Return when ``is_done()``; until then call ``work`` repeatedly, or let another thread do so.

        Raises what ``work`` raises, and NestedRunError within it.
        """
        while not is_done():
            turn = _Turn()
            try:
                if self._take(turn, is_done):
                    while not is_done():
                        work()
                        self._wake()
            finally:
                self._end(turn)

    def is_held_here(self) -> bool:
        """Whether this thread has the turn."""
        current = self._holder()
        return current is not None and current.thread == threading.get_ident()

    def _holder(self) -> _Turn | None:
        turn = None if self._current is None else self._current()
        return None if turn is None or turn.is_over else turn

    def _take(self, turn: _Turn, is_done: Callable[[], bool]) -> bool:
        """Wait until the turn is free (→ True), or until something changes or ``is_done()`` (→ False)."""
        if self.is_held_here():
            raise NestedRunError(
                "this call began inside another one of the same thread, which would have to wait for it"
            )
        with self._changed:
            if self._holder() is None:
                self._current = weakref.ref(turn)
                return True
            if not is_done():
                self._changed.wait(_FALLBACK_SECONDS)
            return False

    def _end(self, turn: _Turn) -> None:
        turn.is_over = True
        self._wake()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def forget_other_threads(self) -> None:
        """In the child of a fork: end the turn of a thread that the child does not have."""
        holder = self._holder()
        if holder is not None and holder.thread != threading.get_ident():
            holder.is_over = True
        self._changed = threading.Condition()
        self._after_fork()


_all: weakref.WeakSet[Turns] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for turns in tuple(_all):
        turns.forget_other_threads()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

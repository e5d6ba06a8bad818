"""RunLock: one run at a time on a model and its cache; other threads queue, first come, first served.

A run may stand still between two items, as a stream does, and may be continued or dropped by any thread. So
the lock belongs to the run and not to a thread, and whatever ends the run, the garbage collector included,
releases it. That can happen in the middle of any call here, so nothing here waits for a lock of its own:
all state is a deque, whose single operations are atomic, and each waiter has a gate.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


_NESTED = "this generation was begun inside another one of the same thread, which would have to wait for it"


class NestedRunError(RuntimeError):
    """A run was begun inside another one, by a callback or a signal handler: it would wait for itself."""


class _Ticket:
    """A place in the queue: the first one's run has the lock.

    ``thread`` is of the one that waits for the run's next item, or that got the last one: see ``_thread``.
    ``owner`` is what ends with the run: a generator that may stand still, or the object of a ``with``.
    """

    def __init__(self) -> None:
        self.thread = _thread()
        self.gate = threading.Lock()
        self.gate.acquire()
        self.owner: weakref.ref[Generator[object] | Hold] | None = None
        self.displaced = False

    def open_gate(self) -> None:
        """May be called more than once."""
        try:  # noqa: SIM105 (a context manager would not be as atomic)
            self.gate.release()
        except RuntimeError:  # it is open
            pass


class RunLock:
    """Held by a call (``hold``), or from the first item of an iterator to its end (``Run``).

    A thread that begins a run while another one of its own stands still ends that one: it would wait for
    itself otherwise. After a fork, runs of the threads that the child does not have are gone.
    """

    def __init__(self) -> None:
        self._queue: deque[_Ticket] = deque()
        _locks.add(self)

    def hold(self) -> Hold:
        """For a ``with``: waits for the lock, and has it until the end. Raises NestedRunError."""
        return Hold(self)

    def acquire(self, ticket: _Ticket) -> None:
        for other in tuple(self._queue):
            if other.thread is ticket.thread:
                self._displace(other)
        self._queue.append(ticket)
        if self._queue[0] is not ticket:
            ticket.gate.acquire()

    def release(self, ticket: _Ticket) -> None:
        """Leave the queue, from whatever place, and let the first in it run; harmless where it has left."""
        try:
            self._queue.remove(ticket)
            self._queue[0].open_gate()
        except (ValueError, IndexError):  # it is not there; nobody is there any more
            pass

    def _displace(self, ticket: _Ticket) -> None:
        """End a run of this thread that stands still. Raises NestedRunError for one that does not."""
        owner = None if ticket.owner is None else ticket.owner()
        if isinstance(owner, Hold):
            raise NestedRunError(_NESTED)
        if owner is not None:  # else Ctrl-C has cut off the very release
            ticket.displaced = True
            try:
                owner.close()
            except ValueError as error:  # it is being executed
                ticket.displaced = False
                if ticket.thread is _thread():
                    raise NestedRunError(_NESTED) from error
                return  # another thread has just gone on with it
        self.release(ticket)

    def keep_after_fork(self) -> None:
        """In a child: keep what its only thread has, and forget the rest."""
        for ticket in tuple(self._queue):
            if ticket.thread is not _thread():
                ticket.displaced = True
                self.release(ticket)


class Hold:
    """What a ``with`` holds a lock by."""

    def __init__(self, lock: RunLock) -> None:
        self._lock = lock
        self._ticket = _Ticket()
        self._ticket.owner = weakref.ref(self)

    def __enter__(self) -> None:
        try:
            self._lock.acquire(self._ticket)
        except BaseException:
            self._lock.release(self._ticket)
            raise

    def __exit__(self, *error: object) -> None:
        self._lock.release(self._ticket)


class Run(Iterator[Item]):
    """An iterator over ``items`` that holds a lock from its first item to its end, its ``close`` or its own.

    It may be iterated by one thread after another. Raises NestedRunError; ``displaced`` says whether it ended
    because its thread began another run.
    """

    def __init__(self, lock: RunLock, items: Iterable[Item]) -> None:
        self._ticket = _Ticket()
        self._items = _held(lock, self._ticket, items)
        self._ticket.owner = weakref.ref(self._items)

    def __next__(self) -> Item:
        self._ticket.thread = _thread()
        if self._ticket.displaced:
            raise StopIteration
        return next(self._items)

    @property
    def displaced(self) -> bool:
        return self._ticket.displaced

    def close(self) -> bool:
        """End the run; returns False where another thread is inside it, which goes on to the next item."""
        try:
            self._items.close()
        except ValueError:  # it is being executed
            return False
        return True


_of_thread = threading.local()


def _thread() -> object:
    """What stands for the current thread: it keeps nothing alive, and no later thread has the same."""
    try:
        token: object = _of_thread.token
    except AttributeError:
        token = _of_thread.token = object()
    return token


def _held(lock: RunLock, ticket: _Ticket, items: Iterable[Item]) -> Generator[Item]:
    try:
        lock.acquire(ticket)
        yield from items
    finally:
        lock.release(ticket)


_locks: weakref.WeakSet[RunLock] = weakref.WeakSet()


def _keep_after_fork() -> None:
    for lock in tuple(_locks):
        lock.keep_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_after_fork)

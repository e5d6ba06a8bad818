"""RunLock: one run at a time whatever threads do, and what a forked child has of it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from thread_calls import Call

from adept_fast.engine.run_lock import NestedRunError, Run, RunLock

FORK = """
import os, signal, sys, threading
from adept_fast import GenerationError, Runtime
runtime = Runtime.load("demo", device="cpu", max_seq_len=64, progress=False)
expected = runtime.generate("a", max_new_tokens=5).token_ids
own = runtime.stream("b", max_new_tokens=5, ignore_eos=True)
held, done = threading.Event(), threading.Event()
streams = []
def hold():
    streams.append(runtime.stream("a", max_new_tokens=9, ignore_eos=True))
    next(streams[0])
    held.set()
    done.wait()
thread = threading.Thread(target=hold, daemon=True)
thread.start()
held.wait()
child = os.fork()
if child == 0:
    signal.alarm(60)
    right = runtime.generate("a", max_new_tokens=5).token_ids == expected
    try:
        next(streams[0])
        right = False
    except GenerationError:
        pass
    os._exit(0 if right else 1)
assert os.waitpid(child, 0)[1] == 0
assert next(streams[0])
streams[0].close()
# What the thread that forks has itself, it goes on with.
first = next(own)
child = os.fork()
if child == 0:
    signal.alarm(60)
    rest = list(own)
    os._exit(0 if own.result.finish_reason == "length" else 1)
assert os.waitpid(child, 0)[1] == 0
done.set()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_child_does_not_wait_for_threads_that_it_does_not_have() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("seed", range(4))
def test_whatever_threads_do_one_run_has_the_lock(seed: int) -> None:
    """Runs are begun, left half done, handed over, closed, dropped and displaced; nobody waits forever."""
    lock, count, each = RunLock(), 6, 1000
    inside: list[int] = []  # runs that have begun and not ended
    shared: deque[Run[int]] = deque()  # left half done, for whoever comes by
    together = threading.Barrier(count)

    def steps(mark: int) -> Iterator[int]:
        inside.append(mark)
        try:
            for at in range(4):
                assert inside == [mark]
                yield at
                assert inside == [mark]
        finally:
            inside.remove(mark)

    def advance(run: Run[int], most: int) -> None:
        for at, _ in enumerate(run, 1):
            if at == most:
                break

    def work(first: int) -> None:
        chosen = random.Random(1000 * seed + first)
        together.wait(timeout=60)
        for at in range(each):
            mark = first * each + at
            kind = chosen.choice(["hold", "run", "drop", "close", "share", "take", "displace", "cycle"])
            if kind == "hold":
                with lock.hold():
                    list(steps(mark))
                continue
            run = Run(lock, steps(mark))
            advance(run, 9 if kind == "run" else chosen.randint(1, 3))
            if kind == "close":
                assert run.close()
            elif kind == "share":
                shared.append(run)
            elif kind == "cycle":
                held: list[Any] = [run]
                held.append(held)
            elif kind == "displace":
                with lock.hold():
                    assert run.displaced
            del run
            # What somebody has left must be ended by somebody, or those who wait would have to.
            with suppress(IndexError):
                while True:
                    other = shared.popleft()
                    if chosen.random() < 0.5:
                        advance(other, 9)
                    other.close()
        with lock.hold():
            pass  # which ends what this thread has left last

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        calls = [Call(lambda first=first: work(first)) for first in range(count)]  # type: ignore[misc]
        for call in calls:
            call.result()
    finally:
        sys.setswitchinterval(interval)
    assert not lock._queue
    assert not inside


def test_a_lock_that_was_left_is_not_released_twice() -> None:
    lock = RunLock()
    with lock.hold(), pytest.raises(NestedRunError), lock.hold():
        pass
    assert not lock._queue
    with pytest.raises(ZeroDivisionError), lock.hold():
        raise ZeroDivisionError
    assert not lock._queue

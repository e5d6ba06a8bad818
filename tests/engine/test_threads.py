"""One Runtime used by several threads: every call gets what it would get alone, and no call waits forever."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from adept_fast.engine.run_lock import NestedRunError, Run, RunLock

from adept_fast import GenerationError, Runtime, TextStream
from adept_fast.engine import decode_loop as decode_loop_module

PROMPTS = ["Once upon a time", "human: What is the capital of Peru?\n\nadept:", "a", "Humpty Dumpty sat"]


class Queue(deque[Any]):
    """Of a RunLock, that tells when somebody has come to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.arrivals = threading.Semaphore(0)

    def append(self, ticket: Any) -> None:
        super().append(ticket)
        if len(self) > 1:
            self.arrivals.release()

    def await_arrival(self) -> None:
        assert self.arrivals.acquire(timeout=60)


@pytest.fixture(scope="module", autouse=True)
def one_thread_a_call() -> Iterator[None]:
    """Else every thread of a test would have as many of its own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def loaded() -> Runtime:
    return Runtime.load("demo", device="cpu", max_seq_len=128, max_batch_size=2, progress=False)


@pytest.fixture
def runtime(loaded: Runtime, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    """Nobody holds its lock, before and afterwards."""
    assert not loaded._lock._queue
    monkeypatch.setattr(loaded._lock, "_queue", Queue())
    yield loaded
    gc.collect()
    assert not loaded._lock._queue


def waiting(runtime: Runtime) -> Queue:
    queue = runtime._lock._queue
    assert isinstance(queue, Queue)
    return queue


class Call(threading.Thread):
    """A call in another thread."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self.start()

    def run(self) -> None:
        self._outcome: Any = None
        self._error: BaseException | None = None
        try:
            self._outcome = self._call()
        except BaseException as error:  # noqa: BLE001 (raised again where the result is asked for)
            self._error = error

    def result(self) -> Any:
        self.join(timeout=60)
        assert not self.is_alive(), "the call waits forever"
        if self._error is not None:
            raise self._error
        return self._outcome


def half_done(runtime: Runtime) -> TextStream:
    stream = runtime.stream(PROMPTS[0], max_new_tokens=20, ignore_eos=True)
    next(stream)
    return stream


def ids(runtime: Runtime, prompt: str = PROMPTS[1]) -> list[int]:
    return runtime.generate(prompt, max_new_tokens=8).token_ids


def random_call(runtime: Runtime, seed: int) -> Any:
    """One of the calls that use the model, with settings of a seed: what comes of it."""
    chosen = random.Random(seed)
    kind = chosen.choice(["generate", "generate", "stream", "stream", "half a stream", "score", "warm up"])
    prompts = chosen.choices(PROMPTS, k=chosen.randint(1, 3))
    settings: dict[str, Any] = {"max_new_tokens": chosen.randint(1, 12), "seed": seed, "ignore_eos": True}
    settings["temperature"] = chosen.choice([0.0, 0.9])
    settings |= chosen.choice([{}, {"repetition_penalty": 1.3}, {"prompt_lookup": 5}, {"logprobs": 1}])
    if kind == "generate":
        return [generation.token_ids for generation in runtime.generate(prompts, **settings)]
    if kind == "score":
        return runtime.score(prompts)
    if kind == "warm up":
        return runtime.warm_up()
    stream = runtime.stream(prompts[0], **settings)
    if kind == "stream":
        return "".join(stream), stream.result.token_ids, stream.result.logprobs
    with stream:
        return next(stream, None)


@pytest.mark.parametrize("seed", range(3))
def test_calls_of_several_threads_get_what_they_get_alone(runtime: Runtime, seed: int) -> None:
    count, each = 4, 8
    expected = [random_call(runtime, 100 * seed + at) for at in range(count * each)]
    together = threading.Barrier(count)

    def work(first: int) -> list[Any]:
        together.wait(timeout=60)
        return [random_call(runtime, 100 * seed + at) for at in range(first, count * each, count)]

    calls = [Call(lambda first=first: work(first)) for first in range(count)]  # type: ignore[misc]
    for first, call in enumerate(calls):
        assert call.result() == expected[first::count]


def test_calls_are_served_in_the_order_in_which_they_come(runtime: Runtime) -> None:
    served: list[int] = []

    def work(at: int) -> None:
        with half_done(runtime):
            served.append(at)

    stream = half_done(runtime)
    calls = []
    for at in range(5):
        calls.append(Call(lambda at=at: work(at)))  # type: ignore[misc]
        waiting(runtime).await_arrival()
    assert served == []
    stream.close()
    for call in calls:
        call.result()
    assert served == list(range(5))


def exhaust(stream: TextStream) -> None:
    list(stream)


def leave_with(stream: TextStream) -> None:
    with pytest.raises(ZeroDivisionError), stream:
        raise ZeroDivisionError


ENDS = {
    "exhausted": exhaust,
    "closed": lambda stream: stream.close(),
    "stopped": lambda stream: stream.stop(),
    "left": leave_with,
    "closed by another thread": lambda stream: Call(stream.close).result(),
    "exhausted by another thread": lambda stream: Call(lambda: list(stream)).result(),
}


@pytest.mark.parametrize("how", ENDS)
def test_another_thread_waits_until_a_stream_has_ended(runtime: Runtime, how: str) -> None:
    expected = ids(runtime)
    stream = half_done(runtime)
    call = Call(lambda: ids(runtime))
    waiting(runtime).await_arrival()
    assert call.is_alive()
    ENDS[how](stream)
    assert call.result() == expected
    assert list(stream) == []
    assert stream.result.finish_reason == ("length" if "exhausted" in how else "interrupted")


def test_a_stream_that_is_dropped_lets_others_go_on(runtime: Runtime) -> None:
    expected = ids(runtime)
    stream = half_done(runtime)
    call = Call(lambda: ids(runtime))
    waiting(runtime).await_arrival()
    del stream
    assert call.result() == expected

    # Garbage that only the collector finds, in whichever thread it runs.
    cycle: list[Any] = [half_done(runtime)]
    cycle.append(cycle)
    call = Call(lambda: ids(runtime))
    waiting(runtime).await_arrival()
    del cycle
    Call(gc.collect).result()
    assert call.result() == expected


def test_the_collector_may_run_while_a_call_queues(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the very moment at which the waiter has joined the queue, in its own thread."""
    expected = ids(runtime)
    held: list[TextStream] = [Call(lambda: half_done(runtime)).result()]
    append = Queue.append

    def collecting(queue: Queue, ticket: Any) -> None:
        append(queue, ticket)
        held.clear()

    monkeypatch.setattr(Queue, "append", collecting)
    assert Call(lambda: ids(runtime)).result() == expected


def test_a_stream_that_nobody_reads_holds_nothing(runtime: Runtime) -> None:
    expected = ids(runtime)
    unread = runtime.stream(PROMPTS[0], max_new_tokens=5)
    assert Call(lambda: ids(runtime)).result() == ids(runtime) == expected
    assert "".join(unread) == unread.result.text == runtime.generate(PROMPTS[0], max_new_tokens=5).text
    closed = runtime.stream(PROMPTS[0])
    closed.close()
    assert list(closed) == []
    assert closed.result.text == ""


def test_a_stream_may_go_from_thread_to_thread(runtime: Runtime) -> None:
    expected = runtime.generate(PROMPTS[0], max_new_tokens=20, ignore_eos=True)
    stream = runtime.stream(PROMPTS[0], max_new_tokens=20, ignore_eos=True)
    pieces = [Call(lambda: next(stream)).result() for _ in range(3)]
    # The thread that got the last piece is another one, so this one waits.
    first = next(stream)
    taken = [Call(lambda: next(stream)).result()]
    call = Call(lambda: ids(runtime))
    waiting(runtime).await_arrival()
    text = "".join([*pieces, first, *taken, *stream])
    assert text == expected.text
    assert stream.result.token_ids == expected.token_ids
    call.result()


def test_a_thread_that_begins_a_call_ends_its_own_stream(runtime: Runtime) -> None:
    expected = ids(runtime)
    for begin in (runtime.generate, runtime.score, lambda prompt: list(runtime.stream(prompt))):
        stream = half_done(runtime)
        begin("a")  # type: ignore[operator]
        for _ in range(2):
            with pytest.raises(GenerationError, match="ended when another generation began"):
                next(stream)
        assert stream.result.finish_reason == "interrupted"
        assert stream.stop() == ""
        assert list(stream) == []
    # Others that wait come first.
    stream = half_done(runtime)
    call = Call(lambda: ids(runtime))
    waiting(runtime).await_arrival()
    assert ids(runtime) == call.result() == expected


def test_a_stream_of_another_thread_is_not_ended(runtime: Runtime) -> None:
    """Also where this thread had got a piece of it."""
    expected = runtime.generate(PROMPTS[0], max_new_tokens=20, ignore_eos=True).text
    stream = half_done(runtime)
    handed_over, go_on = threading.Event(), threading.Event()
    pieces: list[str] = [stream.result.text]

    def read() -> None:
        pieces.append(next(stream))
        handed_over.set()
        assert go_on.wait(timeout=60)
        pieces.extend(stream)

    reader = Call(read)
    assert handed_over.wait(timeout=60)
    helper = Call(lambda: (waiting(runtime).await_arrival(), go_on.set()))
    ids(runtime)
    reader.result()
    helper.result()
    assert "".join(pieces) == expected


def test_stopping_a_stream_while_another_thread_awaits_a_piece(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, inside, stopped = runtime._model.decode_step, threading.Event(), threading.Event()

    def waits(*arguments: Any) -> Any:
        inside.set()
        assert stopped.wait(timeout=60)
        return step(*arguments)

    stream = half_done(runtime)
    before = stream.result.text
    monkeypatch.setattr(runtime._model, "decode_step", waits)
    reader = Call(lambda: list(stream))
    assert inside.wait(timeout=60)
    assert stream.stop() == ""
    stopped.set()
    pieces = reader.result()
    assert before + "".join(pieces) == stream.result.text
    assert len(stream.result.token_ids) == 2
    assert stream.result.finish_reason == "interrupted"
    monkeypatch.undo()


def test_a_call_within_a_call_is_refused(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ids(runtime)
    step = runtime._model.decode_step
    refused: list[BaseException] = []

    def asks(*arguments: Any) -> Any:
        for call in (lambda: ids(runtime), lambda: runtime.score("a"), lambda: next(runtime.stream("a"))):
            with pytest.raises(NestedRunError, match="inside another one of the same thread") as caught:
                call()
            refused.append(caught.value)
        return step(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(runtime._model, "decode_step", asks)
        assert ids(runtime) == expected
        assert list(runtime.stream(PROMPTS[1], max_new_tokens=8))
    assert refused


def test_an_error_in_the_middle_lets_others_go_on(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ids(runtime)
    stream = half_done(runtime)
    call = Call(lambda: ids(runtime))
    waiting(runtime).await_arrival()
    step, broken = runtime._model.decode_step, threading.Event()

    def fails_once(*arguments: Any) -> Any:
        if not broken.is_set():
            broken.set()
            raise ZeroDivisionError
        return step(*arguments)

    monkeypatch.setattr(runtime._model, "decode_step", fails_once)
    with pytest.raises(ZeroDivisionError):
        list(stream)
    assert call.result() == expected


@pytest.mark.parametrize("where", ["TokenLogprobs", "kept_tokens"])
def test_ctrl_c_at_any_place_of_a_step_leaves_a_runtime_that_works(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """After the launch and before it was counted; after it was read and before the text had it."""
    expected = ids(runtime)

    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    for begin in (
        lambda: runtime.generate(PROMPTS[0], logprobs=1, ignore_eos=True),
        lambda: list(runtime.stream(PROMPTS[0], logprobs=1, ignore_eos=True)),
    ):
        with monkeypatch.context() as patched:
            if where == "TokenLogprobs":
                real, calls = decode_loop_module.TokenLogprobs, iter(range(9))
                # The first are the prompt's.
                patched.setattr(
                    decode_loop_module,
                    where,
                    lambda *args: real(*args) if next(calls) < 3 else interrupted(),  # noqa: B023
                )
            else:
                patched.setattr(decode_loop_module, where, interrupted)
            begin()
        assert ids(runtime) == expected


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals reach no thread here")
def test_ctrl_c_while_a_call_queues(runtime: Runtime) -> None:
    """In the main thread, which alone gets it, while another thread has the lock."""
    expected = ids(runtime)
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with half_done(runtime):
            held.set()
            assert let_go.wait(timeout=60)

    holder = Call(hold)
    assert held.wait(timeout=60)
    main = threading.main_thread().ident
    assert main is not None
    pressed = threading.Event()

    def interrupt(*_: object) -> None:
        if not pressed.is_set():
            pressed.set()
            raise KeyboardInterrupt

    def press() -> None:
        """Until it is heard: a signal just before a lock is waited for does not end the wait."""
        waiting(runtime).await_arrival()
        while not pressed.wait(timeout=0.05):
            signal.pthread_kill(main, signal.SIGINT)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        for begin in (lambda: runtime.generate(PROMPTS[0]), lambda: runtime.score("a")):
            pressed.clear()
            presser = Call(press)
            try:
                generation: Any = begin()
            except KeyboardInterrupt:
                pass
            else:
                assert (generation.finish_reason, generation.token_ids) == ("interrupted", [])
            presser.result()
            assert len(waiting(runtime)) == 1
    finally:
        signal.signal(signal.SIGINT, before)
    let_go.set()
    holder.result()
    assert ids(runtime) == expected


def test_ctrl_c_in_the_very_release(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a call and of a stream: the thread that gets it goes on, and so do others then."""

    def interrupted(lock: RunLock, ticket: object) -> None:
        raise KeyboardInterrupt

    expected = ids(runtime)
    for begin in (
        lambda: runtime.generate("a", max_new_tokens=2),
        lambda: runtime.score("a"),
        lambda: list(runtime.stream("a", max_new_tokens=2)),
    ):
        with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
            patched.setattr(RunLock, "release", interrupted)
            begin()
        assert len(waiting(runtime)) == 1
        assert ids(runtime) == expected
        assert Call(lambda: ids(runtime)).result() == expected


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


def test_inference_in_another_thread_leaves_torch_as_it_was(runtime: Runtime) -> None:
    assert torch.is_grad_enabled()
    with half_done(runtime):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()

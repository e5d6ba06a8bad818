"""One Runtime used by several threads: every call gets what it would get alone, and no call waits forever."""

from __future__ import annotations

import os
import random
import signal
import threading
from contextlib import suppress
from typing import Any

import pytest
import torch
from own_process import run_python
from shared_runtime import loaded as loaded
from shared_runtime import one_thread_a_call as one_thread_a_call
from shared_runtime import runtime as runtime
from thread_calls import PROMPTS, Call, half_done, ids

from adept_fast import Runtime, TextStream
from adept_fast.engine import engine as engine_module
from adept_fast.engine import model_runner as model_runner_module
from adept_fast.engine.turn import NestedRunError, Turns


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


@pytest.mark.slow
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
def test_a_stream_that_ends_frees_its_slot(runtime: Runtime, how: str) -> None:
    expected = ids(runtime)
    streams = [half_done(runtime) for _ in range(runtime.max_batch_size)]
    for stream in streams:
        ENDS[how](stream)
        assert list(stream) == []
        assert stream.result.finish_reason == ("length" if "exhausted" in how else "interrupted")
    assert runtime.engine._scheduler.sequences() == ()
    assert ids(runtime) == expected


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
    text = "".join([*pieces, next(stream), Call(lambda: next(stream)).result(), *stream])
    assert text == expected.text
    assert stream.result.token_ids == expected.token_ids


def test_stopping_a_stream_while_another_thread_awaits_a_piece(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, inside, go_on = runtime.engine.runner.model.decode_step, threading.Event(), threading.Event()

    def waits(*arguments: Any) -> Any:
        inside.set()
        assert go_on.wait(timeout=60)
        return step(*arguments)

    stream = half_done(runtime)
    before = stream.result.text
    monkeypatch.setattr(runtime.engine.runner.model, "decode_step", waits)
    reader = Call(lambda: list(stream))
    assert inside.wait(timeout=60)
    cancel, cancelled = runtime.engine._scheduler.cancel, threading.Event()
    monkeypatch.setattr(runtime.engine._scheduler, "cancel", lambda s: (cancel(s), cancelled.set()))
    stopper = Call(stream.stop)
    assert cancelled.wait(timeout=60)
    go_on.set()
    pieces = [*reader.result(), stopper.result()]
    assert before + "".join(pieces) == stream.result.text
    assert len(stream.result.token_ids) == 2
    assert stream.result.finish_reason == "interrupted"
    monkeypatch.undo()


def test_a_call_within_a_call_is_refused(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ids(runtime)
    step = runtime.engine.runner.model.decode_step
    refused: list[BaseException] = []

    def asks(*arguments: Any) -> Any:
        for call in (lambda: ids(runtime), lambda: runtime.score("a"), lambda: next(runtime.stream("a"))):
            with pytest.raises(NestedRunError, match="inside another one of the same thread") as caught:
                call()
            refused.append(caught.value)
        return step(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(runtime.engine.runner.model, "decode_step", asks)
        assert ids(runtime) == expected
        assert list(runtime.stream(PROMPTS[1], max_new_tokens=8))
    assert refused


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
                real, calls = model_runner_module.TokenLogprobs, iter(range(9))
                patched.setattr(
                    model_runner_module,
                    where,
                    lambda *args: real(*args) if next(calls) < 3 else interrupted(),  # noqa: B023
                )
            else:
                patched.setattr(engine_module, where, interrupted)
            begin()
        assert ids(runtime) == expected


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals reach no thread here")
def test_ctrl_c_while_another_thread_steps(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the main thread, which alone gets it, and which waits for its request."""
    expected = ids(runtime)
    main = threading.main_thread().ident
    assert main is not None
    pressed, go_on = threading.Event(), threading.Event()
    step = runtime.engine.runner.model.decode_step

    def waits(*arguments: Any) -> Any:
        """Holds the step of the other thread until the main thread was interrupted."""
        if threading.get_ident() != main:
            inside.set()
            while not pressed.wait(timeout=0.05):
                if is_waiting.is_set():
                    signal.pthread_kill(main, signal.SIGINT)
        return step(*arguments)

    def interrupt(*_: object) -> None:
        if not pressed.is_set():
            pressed.set()
            raise KeyboardInterrupt

    inside, is_waiting = threading.Event(), threading.Event()
    monkeypatch.setattr(runtime.engine.runner.model, "decode_step", waits)
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        for begin in (lambda: runtime.generate(PROMPTS[0], max_new_tokens=50), lambda: runtime.score("a")):
            for event in (pressed, inside, is_waiting, go_on):
                event.clear()
            other = Call(lambda: ids(runtime))
            assert inside.wait(timeout=60)
            is_waiting.set()
            try:
                generation: Any = begin()
            except KeyboardInterrupt:
                pass
            else:
                assert generation.finish_reason == "interrupted"
            assert other.result() == expected
    finally:
        signal.signal(signal.SIGINT, before)
    assert ids(runtime) == expected


def test_ctrl_c_in_the_very_release(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that gets it goes on, and so do others then."""

    def interrupted(turns: Turns, turn: object) -> None:
        raise KeyboardInterrupt

    expected = ids(runtime)
    for begin in (
        lambda: runtime.generate("a", max_new_tokens=2),
        lambda: runtime.score("a"),
        lambda: list(runtime.stream("a", max_new_tokens=2)),
    ):
        with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
            patched.setattr(Turns, "_end", interrupted)
            begin()
        assert ids(runtime) == expected
        assert Call(lambda: ids(runtime)).result() == expected


FORK = """
import os, signal, sys, threading
from adept_fast import Runtime
runtime = Runtime.load("demo", device="cpu", max_batch_size=2, max_seq_len=64, progress=False)
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
    list(streams[0])
    right &= streams[0].result.finish_reason == "interrupted"
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
    done = run_python(FORK)
    assert done.returncode == 0, done.stderr


def test_inference_in_another_thread_leaves_torch_as_it_was(runtime: Runtime) -> None:
    assert torch.is_grad_enabled()
    with half_done(runtime):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()

"""What the engine admits: a bounded queue, deadlines, and few prompt tokens beside decoding rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from shared_runtime import one_thread_a_call as one_thread_a_call
from thread_calls import Call

from adept_fast import ParameterError, Request, Runtime, SamplingParams
from adept_fast.engine.admission import Admission
from adept_fast.engine.scheduler import QueueFullError
from adept_fast.model import PREFILL_CHUNK

SLOTS, WAITING, STEP_TOKENS = 2, 3, 7


@pytest.fixture(scope="module")
def loaded() -> Runtime:
    return Runtime.load(
        "demo",
        device="cpu",
        weights="int8",
        max_seq_len=128,
        max_batch_size=SLOTS,
        max_waiting=WAITING,
        step_tokens=STEP_TOKENS,
        prefix_cache=False,
        progress=False,
    )


@pytest.fixture
def runtime(loaded: Runtime) -> Iterator[Runtime]:
    yield loaded
    for sequence in loaded.engine._scheduler.sequences():
        loaded.engine.cancel(sequence)
    loaded.engine.step()
    assert loaded.engine.counts() == (0, 0)


def request(tokens: int = 100, prompt: tuple[int, ...] = (5, 6), deadline: float | None = None) -> Request:
    return Request(list(prompt), SamplingParams(max_new_tokens=tokens, ignore_eos=True), deadline)


def test_the_queue_is_bounded(runtime: Runtime) -> None:
    """Requests beyond it are refused, all of a call or none; a cancellation makes room again."""
    engine = runtime.engine
    running = engine.submit_all([request() for _ in range(SLOTS)])
    engine.step()
    waiting = engine.submit_all([request() for _ in range(WAITING - 1)])
    with pytest.raises(QueueFullError, match="2 requests wait and 2 more came; expected at most 3 waiting"):
        engine.submit_all([request(), request()])
    assert engine.counts() == (SLOTS, WAITING - 1)
    waiting.append(engine.submit(request()))
    with pytest.raises(QueueFullError):
        engine.submit(request())
    waiting[1].cancel()
    engine.step()
    assert engine.counts() == (SLOTS, WAITING - 1)
    last = engine.submit(request(1))
    for handle in (*running, waiting[0], waiting[2]):
        handle.cancel()
    assert last.result().finish_reason == "length"
    assert waiting[1].result().finish_reason == "interrupted"


def test_more_than_can_ever_wait_is_no_full_queue(runtime: Runtime) -> None:
    """To repeat the call later would not help."""
    most = SLOTS + WAITING
    message = f"{most + 1} prompts and choices came at once; expected at most {most}"
    with pytest.raises(ParameterError, match=message):
        runtime.engine.submit_all([request() for _ in range(most + 1)])
    assert runtime.engine.counts() == (0, 0)


def test_free_slots_count_as_room(runtime: Runtime) -> None:
    handles = runtime.engine.submit_all([request(2) for _ in range(SLOTS + WAITING)])
    with pytest.raises(QueueFullError):
        runtime.engine.submit(request(2))
    assert {handle.result().finish_reason for handle in handles} == {"length"}


def test_a_deadline_ends_a_request_with_the_text_so_far(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a slot and in the queue; the others go on."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    engine = runtime.engine
    alone = engine.submit(request(20)).result()
    late, kept = engine.submit_all([request(deadline=200.0), request(20)])
    queued = engine.submit(request(deadline=150.0))
    for _ in range(4):
        engine.step()
    now[0] = 200.0
    engine.step()
    assert engine.counts() == (1, 0)
    assert late.result().finish_reason == queued.result().finish_reason == "timeout"
    said = late.result().token_ids
    assert said == alone.token_ids[:4]
    assert [event.finish_reason for event in queued] == ["timeout"]
    assert queued.result().token_ids == []
    assert kept.result().token_ids == alone.token_ids


def test_prompts_beside_decoding_rows_are_read_in_small_parts(runtime: Runtime) -> None:
    """A token of the other comes after each part, and no bit changes."""
    engine = runtime.engine
    long = tuple(5 + at for at in range(60))
    alone = [engine.submit(request(30)).result(), engine.submit(request(3, long)).result()]
    decoding = engine.submit(request(30))
    engine.step()
    joins = engine.submit(request(3, long))
    chunks, read = [], engine.runner.prefill
    engine.runner.prefill = lambda segments: (  # type: ignore[method-assign]
        chunks.append(sum(len(segment.ids) for segment in segments)) or read(segments)  # type: ignore[func-returns-value]
    )
    try:
        before = len(decoding.sequence.token_ids)
        next(joins)
    finally:
        del engine.runner.prefill  # type: ignore[method-assign]
    assert chunks == [STEP_TOKENS - 1] * 10
    assert len(decoding.sequence.token_ids) - before == len(chunks)
    assert [decoding.result().token_ids, joins.result().token_ids] == [each.token_ids for each in alone]


def test_a_prompt_alone_is_read_whole(runtime: Runtime) -> None:
    handle = runtime.engine.submit(request(3, tuple(range(5, 65))))
    runtime.engine.step()
    assert len(handle.sequence.token_ids) == 1


def test_a_thread_of_its_own_runs_requests_as_they_come(runtime: Runtime) -> None:
    """Until it is stopped. No other thread steps."""
    engine = runtime.engine
    alone = engine.submit(request(9)).result().token_ids
    is_idle = threading.Event()
    thread = Call(lambda: engine.run(lambda: is_idle.set() if engine.counts() == (0, 0) else None))
    for _ in range(3):
        is_idle.clear()
        found = [engine.submit(request(9)) for _ in range(4)]
        assert is_idle.wait(60)
        assert [handle.sequence.token_ids for handle in found] == [alone] * 4
    engine.stop_running()
    thread.result()


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("step_tokens", 0, "from 1 to"),
        ("step_tokens", "few", "expected an integer, auto or None"),
        ("max_waiting", -1, "from 0 to"),
        ("prefix_cache", 1, "expected True or False"),
    ],
)
def test_settings_out_of_range_are_refused(setting: str, value: object, expected: str) -> None:
    with pytest.raises(ParameterError, match=f"{setting} is {value}; expected .*{expected}|{expected}"):
        Runtime.load("demo", device="cpu", progress=False, **{setting: value})  # type: ignore[arg-type]


def test_the_number_of_prompt_logprobs_is_checked(runtime: Runtime) -> None:
    with pytest.raises(ParameterError, match="prompt_logprobs is 1001; expected an integer from 0 to 1000"):
        runtime.engine.submit(Request([5], SamplingParams(), prompt_logprobs=1001))


def test_auto_reads_as_many_tokens_as_there_are_answers_where_both_cost_the_same(loaded: Runtime) -> None:
    model = loaded.engine.runner.model
    assert model.has_one_order
    auto = Admission("auto")
    assert [auto.step_tokens_of(model, slots) for slots in (1, 8, 12, 40)] == [16, 16, 24, 80]
    assert Admission().step_tokens_of(model, 8) == model.chunk_tokens + 8
    assert Admission(5).step_tokens_of(model, 8) == 5


@pytest.mark.parametrize(
    ("device", "has_one_order", "expected"),
    [("cpu", False, 64 + 8), ("cuda", False, 512 + 8), ("cuda", True, 512 + 8)],
)
def test_auto_reads_more_tokens_where_a_chunk_has_a_fixed_cost(
    device: str, has_one_order: bool, expected: int
) -> None:
    """Weights that a CPU's GEMM packs at each call, and launches on a GPU."""
    model: Any = SimpleNamespace(
        device=torch.device(device), has_one_order=has_one_order, chunk_tokens=PREFILL_CHUNK
    )
    assert Admission("auto").step_tokens_of(model, 8) == expected

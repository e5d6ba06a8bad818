"""Requests to the engine: they join and leave while others decode, and their events are the whole text."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_huggingface
from fake_graph import READS
from shared_runtime import loaded as loaded
from shared_runtime import one_thread_a_call as one_thread_a_call
from shared_runtime import runtime as runtime
from thread_calls import PROMPTS, Call, half_done, ids
from torch.overrides import TorchFunctionMode

from adept_fast import GenerationError, ParameterError, Request, Runtime, SamplingParams
from adept_fast.engine.scoring import ScoredSequence
from adept_fast.model import PREFILL_CHUNK


@pytest.fixture(autouse=True)
def own_step(loaded: Runtime) -> Iterator[None]:
    yield
    vars(loaded.engine).pop("step", None)


def counting_steps(runtime: Runtime) -> list[int]:
    """Grows by one entry a step of the engine."""
    steps: list[int] = []
    step = runtime.engine.step

    def counted() -> None:
        steps.append(1)
        step()

    runtime.engine.step = counted  # type: ignore[method-assign]
    return steps


def test_calls_join_while_others_decode(runtime: Runtime) -> None:
    """A request that comes second ends first, if it is shorter, and both share steps."""
    expected = ids(runtime)
    stream = half_done(runtime)
    steps = counting_steps(runtime)
    assert ids(runtime) == expected
    assert len(steps) == 8  # a prefill and seven steps
    before = len(stream.result.token_ids)
    assert before == 1 + 8
    list(stream)
    assert len(steps) == 8 + 20 - before


def test_requests_begin_in_the_order_in_which_they_came(runtime: Runtime) -> None:
    """More than there are slots, by threads of their own; those that wait take slots as they fall free."""
    count = 7
    begun: list[list[int]] = []
    admit = runtime.engine._scheduler.admit
    runtime.engine._scheduler.admit = lambda: [  # type: ignore[method-assign]
        begun.append(sequence.prompt_ids) or sequence  # type: ignore[func-returns-value, attr-defined]
        for sequence in admit()
    ]
    try:
        prompts = [[5 + at] for at in range(count)]
        handles = []
        for prompt in prompts:
            request = Request(prompt, SamplingParams(max_new_tokens=3, ignore_eos=True))
            handles.append(Call(lambda request=request: runtime.engine.submit(request)).result())  # type: ignore[misc]
        handles[-1].result()
    finally:
        del runtime.engine._scheduler.admit  # type: ignore[attr-defined]
    assert begun == prompts


def test_events_are_the_whole_generation(runtime: Runtime) -> None:
    params = SamplingParams(max_new_tokens=12, logprobs=1, ignore_eos=True)
    whole = runtime.generate(PROMPTS[0], params)
    request = Request(runtime.tokenizer.encode(PROMPTS[0]), params)
    events = list(runtime.engine.submit(request))
    assert [token_id for event in events for token_id in event.token_ids] == whole.token_ids
    assert "".join(event.text for event in events) == whole.text
    assert [entry for event in events for entry in event.logprobs or ()] == whole.logprobs
    assert [event.finish_reason for event in events] == [None] * (len(events) - 1) + ["length"]


def test_a_cancelled_request_frees_its_slot_at_the_next_step(runtime: Runtime) -> None:
    def request(tokens: int | None) -> Request:
        return Request([5], SamplingParams(max_new_tokens=tokens, ignore_eos=True))

    long = runtime.engine.submit_all([request(None), request(None)])
    waiting = runtime.engine.submit(request(2))
    cancelled = runtime.engine.submit(request(2))
    next(long[0])
    steps = counting_steps(runtime)
    cancelled.cancel()
    Call(long[1].cancel).result()
    assert len(list(waiting)) == 2
    assert len(steps) == 2
    assert [event.finish_reason for event in cancelled] == ["interrupted"]
    events = list(long[1])
    assert events[-1].finish_reason == "interrupted"
    assert long[1].sequence.generation(0).finish_reason == "interrupted"
    long[0].cancel()
    assert list(long[0])[-1].finish_reason == "interrupted"


def test_a_long_prompt_does_not_stop_the_others(tmp_path: Path) -> None:
    """Between two chunks of it, they take a step."""
    config = small_config(max_position_embeddings=4096)
    write_huggingface(tmp_path, config, random_tensors(config), demo_tokenizer())
    runtime = Runtime.load(tmp_path, device="cpu", max_batch_size=2, prefix_cache=False, progress=False)
    params = SamplingParams(max_new_tokens=20, ignore_eos=True)
    first, prompt = [5, 6, 7], [5 + at % 4000 for at in range(3 * PREFILL_CHUNK + 1)]
    alone = [runtime.generate([ids], params)[0].token_ids for ids in (first, prompt)]
    decoding = runtime.engine.submit(Request(first, params))
    next(decoding)
    joins = runtime.engine.submit(Request(prompt, params))
    next(joins)
    assert len(decoding.sequence.token_ids) == 1 + 4  # one step beside each of four chunks
    assert [joins.result().token_ids, decoding.result().token_ids] == alone[::-1]


def test_an_error_in_logits_ends_its_own_request_alone(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ids(runtime)
    step = runtime.engine.runner.model.decode_step

    def damaged(ids: torch.Tensor, slots: torch.Tensor, *rest: Any) -> torch.Tensor:
        logits = step(ids, slots, *rest)
        logits[slots == broken.sequence.slot] = float("nan")
        return logits

    monkeypatch.setattr(runtime.engine.runner.model, "decode_step", damaged)
    request = Request(runtime.tokenizer.encode(PROMPTS[1]), SamplingParams(max_new_tokens=8))
    broken, whole = runtime.engine.submit_all([request, request])
    assert whole.result().token_ids == expected
    assert next(broken).token_ids == tuple(expected[:1])
    with pytest.raises(GenerationError, match="hold a NaN"):
        next(broken)


def test_streams_that_are_dropped_free_their_slots(runtime: Runtime) -> None:
    expected = ids(runtime)
    long = {"max_new_tokens": None, "ignore_eos": True}
    streams = [runtime.stream(prompt, **long) for prompt in PROMPTS[:2]]
    for stream in streams:
        next(stream)
    cycle: list[Any] = [streams, stream]
    cycle.append(cycle)
    del cycle, streams, stream
    Call(gc.collect).result()
    steps = counting_steps(runtime)
    assert ids(runtime) == expected
    assert len(steps) <= 9  # and not the dropped streams' hundred


FAVOURED = {token_id: 90 - token_id / 10 for token_id in range(5, 30)}  # of which the penalties choose


@pytest.mark.parametrize(
    "settings",
    [
        {"logit_bias": FAVOURED, "repetition_penalty": 1.3, "temperature": 3.0, "seed": 1},
        {"logit_bias": FAVOURED, "frequency_penalty": 1.5},
        {"logit_bias": FAVOURED, "presence_penalty": -2.0, "temperature": 1.0, "seed": 2},
    ],
    ids=["repetition", "frequency", "presence"],
)
def test_an_error_of_a_step_lets_others_go_on(
    runtime: Runtime, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of their texts, with a penalty on the tokens so far."""
    params = SamplingParams(max_new_tokens=12, ignore_eos=True, **settings)
    request = Request(runtime.tokenizer.encode(PROMPTS[0]), params)
    expected = runtime.engine.submit(request).result().token_ids
    other = runtime.engine.submit(request)
    stream = half_done(runtime)
    step, broken = runtime.engine.runner.step_runner.launch, threading.Event()

    def fails_once(*arguments: Any) -> Any:
        logits = step(*arguments)
        if not broken.is_set():
            broken.set()
            raise ZeroDivisionError
        return logits

    monkeypatch.setattr(runtime.engine.runner.step_runner, "launch", fails_once)
    with pytest.raises(ZeroDivisionError):
        list(stream)
    assert other.result().token_ids == expected
    assert stream.result.finish_reason == "interrupted"


class CountingReads(TorchFunctionMode):
    """Counts how often the host reads a tensor, which waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += getattr(func, "__name__", "") in READS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_a_chunk_is_read_with_one_wait(runtime: Runtime, penalty: float) -> None:
    """Of a prompt that ends in it and a text that is scored; the first token and the scores come together."""
    params = SamplingParams(max_new_tokens=1, repetition_penalty=penalty, stop_token_ids=(7,))
    handle = runtime.engine.submit(Request([5, 6, 7], params))
    scored = ScoredSequence([5], [[6, 7]])
    runtime.engine._scheduler.add([scored])
    with CountingReads() as reads:
        runtime.engine.step()
    assert handle.sequence.is_finished
    assert scored.is_finished
    assert reads.count == 1


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([], "prompt has no tokens; expected at least one"),
        ([5, -1], "prompt has the token id -1; expected 0 to"),
        ([4096], "prompt has the token id 4096; expected 0 to 4095"),
        ([5] * 129, "prompt has 129 tokens; expected at most max_seq_len 128"),
    ],
)
def test_a_prompt_is_checked_before_it_is_queued(runtime: Runtime, ids: list[int], expected: str) -> None:
    with pytest.raises(ParameterError, match=expected):
        runtime.engine.submit_all([Request([5], SamplingParams()), Request(ids, SamplingParams())])
    assert runtime.engine._scheduler.sequences() == ()

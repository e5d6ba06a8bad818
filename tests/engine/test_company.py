"""A sequence has the same bits alone and in company, whatever all settings and however its prompt is cut."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from company import check_company, random_request
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import hidden_states

from adept_fast import Runtime
from adept_fast.model import PREFILL_CHUNK

FORMATS = ("float32", "float16", "bfloat16", "int8", "int4", "int4-g32")
SEQUENCES, CAPACITY = 84, 300  # of each format, 504 together

in_every_format = pytest.mark.parametrize("fmt", FORMATS)


@functools.cache
def load(fmt: str, max_batch_size: int, exact_prefill: bool = False) -> Runtime:
    form: dict[str, Any] = {"weights": fmt} if fmt.startswith("int") else {"dtype": fmt}
    return Runtime.load(
        "demo",
        device="cpu",
        max_batch_size=max_batch_size,
        max_seq_len=CAPACITY,
        exact_prefill=exact_prefill,
        progress=False,
        **form,
    )


@pytest.fixture(scope="module", autouse=True)
def released() -> Iterator[None]:
    yield
    load.cache_clear()


@pytest.mark.slow
@in_every_format
def test_sequences_are_what_they_are_alone(fmt: str) -> None:
    check_company(load(fmt, 16), load(fmt, 1), SEQUENCES, random.Random(fmt))


@pytest.mark.slow
@in_every_format
def test_scores_are_what_they_are_alone(fmt: str) -> None:
    many, one, draw = load(fmt, 16), load(fmt, 1), random.Random(fmt)
    texts = [random_request(draw, many.tokenizer.vocab_size)[0] for _ in range(16)]
    for text, together in zip(texts, many.score(texts), strict=True):
        assert together.logprobs == one.score([text])[0].logprobs


def prefilled_logits(runtime: Runtime, ids: list[int], chunk_tokens: int) -> torch.Tensor:
    """After each token, by prefill in chunks of so many: float32 [tokens, vocab]."""
    model, cache = runtime.engine.runner.model, runtime.engine.runner.cache
    return model.all_logits(hidden_states(model, cache, ids, chunk_tokens))[:, : runtime.tokenizer.vocab_size]


def decoded_logits(runtime: Runtime, ids: list[int]) -> torch.Tensor:
    """After each token, by a decode step for each: float32 [tokens, vocab]."""
    model, cache = runtime.engine.runner.model, runtime.engine.runner.cache
    slot = torch.zeros(1, dtype=torch.int64)
    return torch.cat(
        [
            model.decode_step(torch.tensor([token_id]), slot, slot + position, cache, position + 1)
            for position, token_id in enumerate(ids)
        ]
    )


@pytest.mark.slow
@in_every_format
def test_chunks_of_a_prompt_change_no_bit(fmt: str) -> None:
    runtime = load(fmt, 1)
    ids = [3 + 7 * number % 1000 for number in range(100)]
    whole = prefilled_logits(runtime, ids, PREFILL_CHUNK)

    @settings(max_examples=5, deadline=None)
    @given(st.integers(1, PREFILL_CHUNK), st.sampled_from([1, 2, 3]))
    def holds(chunk_tokens: int, threads: int) -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            assert torch.equal(prefilled_logits(runtime, ids, chunk_tokens), whole)
        finally:
            torch.set_num_threads(before)

    holds()


@in_every_format
def test_decode_steps_have_the_bits_of_an_exact_prefill(fmt: str) -> None:
    """On a CPU, prefill has them without being asked, but in bfloat16 where the processor multiplies it."""
    ids = list(range(3, 60))
    exact = load(fmt, 1, exact_prefill=True)
    expected = decoded_logits(exact, ids)
    assert torch.equal(prefilled_logits(exact, ids, exact.engine.runner.model.chunk_tokens), expected)
    if fmt != "bfloat16":
        assert torch.equal(prefilled_logits(load(fmt, 1), ids, PREFILL_CHUNK), expected)

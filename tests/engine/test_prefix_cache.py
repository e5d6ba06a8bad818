"""The prefix cache: which tokens are read again, and that no bit of a result depends on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_huggingface
from conversations import cached_tokens_of_random_conversations
from hypothesis import given
from hypothesis import strategies as st
from shared_runtime import one_thread_a_call as one_thread_a_call

from adept_fast import Generation, Request, Runtime, SamplingParams
from adept_fast.engine.prefix_cache import MIN_COPIED_TOKENS, HeldTokens, PrefixCache, common_prefix

SLOTS = 3
A, B, C = (
    [base + at % 50 for at in range(100)] for base in (100, 200, 300)
)  # prompts with nothing in common
TOKENS = 6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("small")
    config = small_config(max_position_embeddings=512)
    write_huggingface(path, config, random_tensors(config), demo_tokenizer())
    return path


Load = Callable[..., Runtime]


@pytest.fixture(scope="module")
def load(checkpoint: Path) -> Load:
    def load(**settings: Any) -> Runtime:
        defaults = {"device": "cpu", "max_batch_size": SLOTS, "dtype": "float32", "progress": False}
        return Runtime.load(checkpoint, **defaults | settings)

    return load


@pytest.fixture(scope="module")
def cold(load: Load) -> Runtime:
    return load(prefix_cache=False)


@pytest.fixture
def runtime(load: Load) -> Iterator[Runtime]:
    runtime = load()
    yield runtime
    assert runtime.engine.counts() == (0, 0)


def request(prompt: list[int], tokens: int = TOKENS, **settings: Any) -> Request:
    return Request(
        list(prompt), SamplingParams(max_new_tokens=tokens, ignore_eos=True, logprobs=2), **settings
    )


def run(runtime: Runtime, prompt: list[int], tokens: int = TOKENS, **settings: Any) -> Generation:
    return runtime.engine.submit(request(prompt, tokens, **settings)).result()


def read_tokens(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of all prompts that are read from now on."""
    read: list[int] = []
    prefill = runtime.engine.runner.prefill

    def counted(segments: Any) -> torch.Tensor:
        read.extend(token_id for segment in segments for token_id in segment.ids)
        return prefill(segments)

    monkeypatch.setattr(runtime.engine.runner, "prefill", counted)
    return read


def bits(generation: Generation) -> tuple[Any, ...]:
    return generation.token_ids, generation.logprobs, generation.text, generation.finish_reason


def test_the_next_turn_reads_its_new_tokens_only(
    runtime: Runtime, cold: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(runtime, A)
    assert first.timings.cached_tokens == 0
    prompt = A + first.token_ids + B[:5]
    read = read_tokens(runtime, monkeypatch)
    second = run(runtime, prompt)
    assert read == [first.token_ids[-1], *B[:5]]  # the last token was not read before
    assert second.timings.cached_tokens == len(A) + TOKENS - 1
    assert bits(second) == bits(run(cold, prompt))


def test_an_interrupted_answer_keeps_what_was_read(
    runtime: Runtime, cold: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = runtime.engine.submit(request(A, 50))
    for _ in range(4):
        next(handle)
    handle.cancel()
    said = handle.result().token_ids
    assert handle.result().finish_reason == "interrupted"
    read = read_tokens(runtime, monkeypatch)
    prompt = A + said + [7]
    second = run(runtime, prompt)
    assert read == [said[-1], 7]
    assert bits(second) == bits(run(cold, prompt))


def test_an_interrupted_prompt_keeps_what_was_read(load: Load, cold: Runtime) -> None:
    runtime = load(step_tokens=10)
    other = runtime.engine.submit(request(B, 60))
    next(other)
    handle = runtime.engine.submit(request(A))
    for _ in range(3):
        runtime.engine.step()
    handle.cancel()
    runtime.engine.step()
    again = runtime.engine.submit(request(A))
    assert again.result().timings.cached_tokens == 3 * 9  # a row of each step is the other's
    assert bits(again.result()) == bits(run(cold, A))
    assert bits(other.result()) == bits(run(cold, B, 60))


def test_the_same_prompt_again_reads_its_last_token(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(runtime, A)
    read = read_tokens(runtime, monkeypatch)
    assert bits(run(runtime, A)) == bits(first)
    assert read == A[-1:]


def test_equal_beginnings_are_read_once(
    runtime: Runtime, cold: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By requests that come at once, in any slots: the later ones wait, and copy."""
    prompts = [A + [5], A + [6, 7], A[:60] + B, B]
    read = read_tokens(runtime, monkeypatch)
    handles = runtime.engine.submit_all([request(prompt) for prompt in prompts])
    found = [handle.result() for handle in handles]
    assert [generation.timings.cached_tokens for generation in found] == [0, len(A), 60, 0]
    assert len(read) == len(A) + 1 + 2 + len(B) + len(B)
    assert [bits(generation) for generation in found] == [bits(run(cold, prompt)) for prompt in prompts]


def test_a_long_conversation_is_not_lost_to_a_short_beginning(runtime: Runtime) -> None:
    """Another request that shares a few tokens copies them to the slot that was used least recently."""
    run(runtime, A)
    assert run(runtime, A[:30] + B).timings.cached_tokens == 30
    assert run(runtime, A).timings.cached_tokens == len(A) - 1


def test_the_slot_used_least_recently_is_taken(runtime: Runtime) -> None:
    for prompt in (A, B, C, A, [9, *A]):
        run(runtime, prompt)
    cached = [run(runtime, prompt).timings.cached_tokens for prompt in (A, C, B)]
    assert cached == [len(A) - 1, len(C) - 1, 0]


def test_scopes_share_nothing(runtime: Runtime) -> None:
    run(runtime, A, cache_scope="one")
    assert run(runtime, A, cache_scope="two").timings.cached_tokens == 0
    assert run(runtime, A).timings.cached_tokens == 0
    assert run(runtime, A, cache_scope="one").timings.cached_tokens == len(A) - 1


def test_scores_and_warm_up_leave_nothing_to_reuse(runtime: Runtime, cold: Runtime) -> None:
    first = run(runtime, A)
    runtime.score([B] * SLOTS)
    assert bits(run(runtime, A)) == bits(first)
    runtime.warm_up()  # in slot 0
    assert bits(run(runtime, A)) == bits(run(cold, A))
    assert runtime.score([A]) == cold.score([A])


def test_prompt_logprobs_are_those_of_score(runtime: Runtime, cold: Runtime) -> None:
    """Whether or not the cache holds the prompt, and whether or not text follows."""
    (score,) = cold.score([A])
    run(runtime, A)
    for tokens in (0, 1, TOKENS):
        generation = run(runtime, A, tokens, prompt_logprobs=3)
        assert generation.timings.cached_tokens == 0
        assert bits(generation) == bits(run(cold, A, tokens))
        found = generation.prompt_logprobs
        assert found is not None
        assert found[0] is None
        entries = [entry for entry in found if entry is not None]
        assert [entry.logprob for entry in entries] == score.logprobs[1:]
        assert [entry.token_id for entry in entries] == A[1:]
        for entry in entries:
            assert len(entry.top) == 3
            assert dict(entry.top).get(entry.token_id, entry.logprob) == entry.logprob
            assert max(logprob for _, logprob in entry.top) >= entry.logprob
    assert run(runtime, [5], 0, prompt_logprobs=0).prompt_logprobs == [None]
    assert run(runtime, A).prompt_logprobs is None


def test_logits_that_are_no_numbers_leave_nothing_to_reuse(
    runtime: Runtime, cold: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their keys and values may be no numbers either."""
    logits = runtime.engine.runner.model.logits
    with monkeypatch.context() as patch:
        patch.setattr(runtime.engine.runner.model, "logits", lambda x: torch.full_like(logits(x), torch.nan))
        with pytest.raises(ValueError, match="NaN"):
            run(runtime, A)
    assert run(runtime, A).timings.cached_tokens == 0


@pytest.mark.parametrize("settings", [{"dtype": "float32"}, {"dtype": "bfloat16"}, {"weights": "int4"}])
def test_random_conversations_have_the_bits_of_a_cold_start(load: Load, settings: dict[str, Any]) -> None:
    """Some are cancelled, some draft, and prompts are read in small parts beside decoding rows."""
    cold, warm = load(prefix_cache=False, **settings), load(step_tokens=24, **settings)
    assert cached_tokens_of_random_conversations(cold, warm, beginnings=[A, B, A[:40] + B]) > 1000


def test_generated_tokens_are_read_again_where_a_decode_step_has_other_bits(load: Load) -> None:
    """bfloat16 on a processor with AVX512_BF16 is such a case; here the two are said to differ."""
    runtime = load()
    first = runtime.engine.submit(request(A))
    first.sequence._decoded_is_reusable = False
    said = first.result().token_ids
    assert run(runtime, A + said + B[:5]).timings.cached_tokens == len(A)


TOKEN = st.integers(0, 3)


@given(st.lists(TOKEN, max_size=40), st.lists(TOKEN, max_size=40), st.integers(0, 40))
def test_the_common_prefix_is_the_longest(held: list[int], wanted: list[int], shared: int) -> None:
    wanted = held[:shared] + wanted
    expected = 0
    while expected < min(len(held), len(wanted)) and held[expected] == wanted[expected]:
        expected += 1
    assert common_prefix(HeldTokens(held), HeldTokens(wanted)) == expected
    assert common_prefix(HeldTokens(held, "other"), HeldTokens(wanted)) == 0


def test_an_empty_slot_is_taken_before_one_that_holds_something() -> None:
    prefixes = PrefixCache(3)
    prefixes.keep(1, HeldTokens(A))
    prefixes.keep(0, HeldTokens(B))
    prefixes.keep(2, HeldTokens([]))
    assert prefixes.take([0, 1, 2], HeldTokens(C)) == (2, 0)
    assert prefixes.take([0, 1], HeldTokens(A[:MIN_COPIED_TOKENS])) == (1, 16)  # the oldest
    assert prefixes.take([0], HeldTokens(B[:70])) == (0, 70)
    assert prefixes.kept(0).ids == []

"""Prompt lookup: the guesses are what last followed, and whatever is guessed, the text stays the same."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adept_fast import ParameterError, Runtime, SamplingParams
from adept_fast.chat.format import chat_prompt
from adept_fast.engine.speculation import PromptLookup

REPEATED = chat_prompt("What is the capital of France?") + " The capital of France is Paris.\n\n"
PROMPTS = [
    REPEATED + chat_prompt("What is the capital of France?"),
    chat_prompt("Recite Humpty Dumpty."),
    "a b c d a b c d a b",
    "Once upon a time",
    "",
]
SETTINGS = {
    "greedy": SamplingParams(max_new_tokens=48, ignore_eos=True),
    "to its end": SamplingParams(max_new_tokens=48),
    "drawn": SamplingParams(max_new_tokens=48, temperature=0.8, top_p=0.95, seed=7),
    "stopped": SamplingParams(max_new_tokens=48, stop=("Paris", "fox", " c"), ignore_eos=True),
    "two": SamplingParams(max_new_tokens=2, ignore_eos=True),
}


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime.load(
        "demo", device="cpu", dtype="float32", max_batch_size=3, max_seq_len=128, progress=False
    )


def followed(ids: list[int], count: int) -> list[int]:
    """What PromptLookup is to say, by going through all that stands before."""
    for matched in (3, 2):
        for place in range(len(ids) - 1, matched - 1, -1):
            if ids[place - matched : place] == ids[len(ids) - matched :]:
                going_on = list(ids)
                for i in range(count):
                    going_on.append(going_on[place + i])
                return going_on[len(ids) :]
    return []


@given(st.lists(st.integers(0, 2), max_size=24), st.integers(1, 15))
def test_guesses_are_what_last_followed(ids: list[int], count: int) -> None:
    assert PromptLookup(ids).draft(count) == followed(ids, count)


def test_tokens_of_the_text_are_looked_up_too() -> None:
    lookup = PromptLookup([1, 2, 3])
    assert lookup.draft(2) == []
    for token_id in (9, 1, 2, 3):
        lookup.push(token_id)
    assert lookup.draft(3) == [9, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_text_is_the_same(runtime: Runtime, settings: str, prompt: str) -> None:
    params = SETTINGS[settings]
    plain = runtime.generate(prompt, params)
    for count in (1, 4, 15):
        guessed = runtime.generate(prompt, dataclasses.replace(params, prompt_lookup=count))
        assert guessed.token_ids == plain.token_ids
        assert guessed.text == plain.text
        assert guessed.finish_reason == plain.finish_reason
        timings = guessed.timings
        assert timings.decode_tokens == plain.timings.decode_tokens
        assert timings.decode_steps + timings.accepted_tokens == timings.decode_tokens
        assert timings.accepted_tokens <= timings.drafted_tokens


def test_batches_get_what_each_prompt_gets_alone(runtime: Runtime) -> None:
    params = SamplingParams(max_new_tokens=40, temperature=0.7, seed=3, prompt_lookup=5)
    together = runtime.generate(PROMPTS, params)
    assert [g.token_ids for g in together] == [runtime.generate(p, params).token_ids for p in PROMPTS]


def test_guesses_of_a_whole_batch_share_the_rows_of_a_step(runtime: Runtime) -> None:
    """All of them guess from the first step on, and each wants as many rows as a step has."""
    params = SamplingParams(max_new_tokens=12, prompt_lookup=15, ignore_eos=True)
    prompts = [[5, 6, 7] * 9] * runtime.max_batch_size
    (alone,) = runtime.generate(prompts[:1], params)
    assert [g.token_ids for g in runtime.generate(prompts, params)] == [alone.token_ids] * len(prompts)


def test_text_that_repeats_takes_fewer_steps(runtime: Runtime) -> None:
    timings = runtime.generate(PROMPTS[0], prompt_lookup=6).timings
    assert timings.accepted_tokens > 0
    assert timings.decode_steps <= timings.decode_tokens * 0.7


def test_logprobs_are_those_of_steps_alone(runtime: Runtime) -> None:
    params = SamplingParams(max_new_tokens=24, logprobs=2)
    plain = runtime.generate(PROMPTS[0], params)
    guessed = runtime.generate(PROMPTS[0], dataclasses.replace(params, prompt_lookup=6))
    assert plain.logprobs is not None
    assert guessed.logprobs is not None
    for ours, theirs in zip(guessed.logprobs, plain.logprobs, strict=True):
        assert (ours.token_id, [i for i, _ in ours.top]) == (theirs.token_id, [i for i, _ in theirs.top])
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)


def test_the_context_is_not_passed() -> None:
    runtime = Runtime.load("demo", device="cpu", max_seq_len=40, progress=False)
    prompt = [5, 6, 7, 8] * 8
    plain, guessed = (
        runtime.generate([prompt], max_new_tokens=None, ignore_eos=True, prompt_lookup=count)[0]
        for count in (0, 15)
    )
    assert len(guessed.token_ids) == len(plain.token_ids) == 40 + 1 - len(prompt)
    assert guessed.token_ids == plain.token_ids


@pytest.mark.parametrize("count", [-1, 16, 1.5, True])
def test_a_count_out_of_range_is_refused(count: object) -> None:
    with pytest.raises(ParameterError, match="prompt_lookup is .*; expected an integer from 0 to 15"):
        SamplingParams(prompt_lookup=count)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["repetition_penalty", "frequency_penalty", "presence_penalty"])
def test_not_together_with_a_penalty(name: str) -> None:
    with pytest.raises(ParameterError, match=f"prompt_lookup is 3 and {name} 1.2; expected only one"):
        SamplingParams(prompt_lookup=3, **{name: 1.2})  # type: ignore[arg-type]


def test_guesses_with_a_bias_change_nothing(runtime: Runtime) -> None:
    """Towards some tokens, so that the text repeats, and away from the likeliest."""
    plain = runtime.generate(REPEATED, max_new_tokens=20, ignore_eos=True)
    bias = {plain.token_ids[0]: -100.0, 7: 4.0, 9: 3.5}
    params = SamplingParams(max_new_tokens=30, ignore_eos=True, logit_bias=bias)
    expected = runtime.generate(REPEATED, params)
    guessed = runtime.generate(REPEATED, dataclasses.replace(params, prompt_lookup=7))
    assert guessed.token_ids == expected.token_ids != plain.token_ids
    assert plain.token_ids[0] not in guessed.token_ids
    assert guessed.timings.accepted_tokens > 0

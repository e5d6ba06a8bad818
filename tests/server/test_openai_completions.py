"""``/v1/completions`` by OpenAI's own client: every text is the one that Runtime.generate returns."""

from __future__ import annotations

from typing import Any

import pytest
from openai import OpenAI
from openai.types import Completion, CompletionChoice
from openai_server import alone, client, one_thread_a_call, server, started

from adept_fast import Generation, Runtime, SamplingParams

__all__ = ["alone", "client", "one_thread_a_call", "server", "started"]

PROMPT = "Once upon a time"
OTHER = "human: What is the capital of Peru?\n\nadept:"


def tokens_of(runtime: Runtime, generation: Generation) -> list[str]:
    return [runtime.tokenizer.piece(i).replace("▁", " ") for i in generation.token_ids]


def assert_same(runtime: Runtime, choice: CompletionChoice, expected: Generation) -> None:
    assert choice.text == expected.text
    assert choice.logprobs is not None
    assert expected.logprobs is not None
    assert choice.logprobs.tokens == tokens_of(runtime, expected)
    assert choice.logprobs.token_logprobs == [entry.logprob for entry in expected.logprobs]


SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"seed": 3},
    {"seed": 2**63 - 1, "temperature": 1.7, "top_p": 0.9},
    {"seed": 5, "temperature": 2, "top_k": 7},
    {"seed": 6, "temperature": 2, "min_p": 0.05, "repetition_penalty": 1.5},
    {"seed": 7, "temperature": 2, "stop": ["e"], "ignore_eos": True},
    {"temperature": 0, "stop_token_ids": [340, 534]},
    {"seed": 8, "frequency_penalty": 1.5, "presence_penalty": -0.5, "logit_bias": {"304": -100, "305": 4}},
]
EXTENSIONS = ("top_k", "min_p", "repetition_penalty", "ignore_eos", "stop_token_ids")


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_texts_and_logprobs_are_those_of_generate(
    client: OpenAI, alone: Runtime, settings: dict[str, Any]
) -> None:
    own = {name: value for name, value in settings.items() if name in EXTENSIONS}
    others = {name: value for name, value in settings.items() if name not in EXTENSIONS}
    done = client.completions.create(
        model="demo", prompt=PROMPT, max_tokens=24, logprobs=2, extra_body=own, **others
    )
    if "logit_bias" in settings:
        settings = {**settings, "logit_bias": {int(i): bias for i, bias in settings["logit_bias"].items()}}
    params = SamplingParams(**{"max_new_tokens": 24, "logprobs": 2, "temperature": 1.0, **settings})
    expected = alone.generate(PROMPT, params)
    assert_same(alone, done.choices[0], expected)
    if settings != {"temperature": 0}:  # each has an effect
        assert expected.text != alone.generate(PROMPT, max_new_tokens=24).text


def test_the_defaults_are_those_of_openai(client: OpenAI, alone: Runtime) -> None:
    done = client.completions.create(model="demo", prompt=PROMPT, seed=1)
    expected = alone.generate(PROMPT, max_new_tokens=16, temperature=1, seed=1)
    assert done.choices[0].text == expected.text
    assert done.choices[0].logprobs is None
    assert done.choices[0].finish_reason == "length"
    assert (done.model, done.object) == ("demo", "text_completion")
    assert done.usage is not None
    prompt_tokens = len(alone.tokenizer.encode(PROMPT))
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (prompt_tokens, 16)
    assert done.usage.total_tokens == prompt_tokens + 16


def test_each_prompt_has_n_choices_of_different_seeds(client: OpenAI, alone: Runtime) -> None:
    def create() -> Completion:
        return client.completions.create(
            model="demo", prompt=[PROMPT, OTHER], n=3, seed=11, temperature=2, max_tokens=20
        )

    done = create()
    assert [choice.index for choice in done.choices] == list(range(6))
    texts = [choice.text for choice in done.choices]
    assert len(set(texts)) == 6
    assert [choice.text for choice in create().choices] == texts
    for prompt, text in ((PROMPT, texts[0]), (OTHER, texts[3])):
        assert alone.generate(prompt, seed=11, temperature=2, max_new_tokens=20).text == text
    assert done.usage is not None
    assert done.usage.prompt_tokens == sum(len(alone.tokenizer.encode(p)) for p in (PROMPT, OTHER))


def test_a_seed_of_64_bits_may_be_negative(client: OpenAI) -> None:
    texts = {
        client.completions.create(model="demo", prompt=PROMPT, seed=seed, temperature=2).choices[0].text
        for seed in (-(2**63), -1, 1)
    }
    assert len(texts) == 3


def test_token_ids_are_prompts(client: OpenAI, alone: Runtime) -> None:
    ids = [alone.tokenizer.encode(prompt) for prompt in (PROMPT, OTHER)]
    expected = [alone.generate([prompt], max_new_tokens=16)[0].text for prompt in ids]
    one = client.completions.create(model="demo", prompt=ids[0], temperature=0)
    assert [choice.text for choice in one.choices] == expected[:1]
    both = client.completions.create(model="demo", prompt=ids, temperature=0)
    assert [choice.text for choice in both.choices] == expected


@pytest.mark.parametrize("prompt", ["", [""], [[]]])
def test_an_empty_prompt_is_bos(client: OpenAI, alone: Runtime, prompt: Any) -> None:
    done = client.completions.create(model="demo", prompt=prompt, temperature=0)
    assert done.choices[0].text == alone.generate("", max_new_tokens=16).text


def test_a_stop_string_ends_a_text(client: OpenAI, alone: Runtime) -> None:
    expected = alone.generate(OTHER, max_new_tokens=40)
    assert "Lima" in expected.text
    done = client.completions.create(model="demo", prompt=OTHER, temperature=0, max_tokens=40, stop="Lima")
    assert done.choices[0].text == expected.text.partition("Lima")[0]
    assert done.choices[0].finish_reason == "stop"
    ended = client.completions.create(model="demo", prompt=OTHER, temperature=0, max_tokens=40)
    assert (ended.choices[0].text, ended.choices[0].finish_reason) == (expected.text, "stop")


def test_echo_begins_with_the_prompt(client: OpenAI, alone: Runtime) -> None:
    continued = alone.generate(PROMPT, max_new_tokens=16).text
    for prompt in (PROMPT, alone.tokenizer.encode(PROMPT)):
        done = client.completions.create(model="demo", prompt=prompt, temperature=0, echo=True, n=2)
        assert [choice.text for choice in done.choices] == [PROMPT + continued] * 2


def test_echo_repeats_each_choices_own_prompt(client: OpenAI) -> None:
    done = client.completions.create(model="demo", prompt=[PROMPT, OTHER], n=2, max_tokens=0, echo=True)
    assert [choice.text for choice in done.choices] == [PROMPT, PROMPT, OTHER, OTHER]


@pytest.mark.parametrize("max_tokens", [0, 5])
def test_echo_with_logprobs_scores_the_prompt(client: OpenAI, alone: Runtime, max_tokens: int) -> None:
    text = "Tim ate a pie – 5 €."
    (score,) = alone.score([text])
    expected = alone.generate(text, max_new_tokens=max_tokens, logprobs=0, ignore_eos=True)
    assert expected.logprobs is not None
    done = client.completions.create(
        model="demo",
        prompt=text,
        temperature=0,
        echo=True,
        max_tokens=max_tokens,
        logprobs=2,
        extra_body={"ignore_eos": True},
    )
    (choice,) = done.choices
    assert choice.text == text + expected.text
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    assert logprobs.tokens is not None
    generated = [entry.logprob for entry in expected.logprobs]
    assert logprobs.token_logprobs == [*score.logprobs, *generated]
    assert logprobs.token_logprobs[0] is None
    assert logprobs.top_logprobs[0] is None
    for token, logprob, top in list(
        zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True)
    )[1:]:
        assert 2 <= len(top) <= 3
        assert top[token] == logprob
        assert max(top.values()) >= logprob
    assert done.usage is not None
    assert done.usage.completion_tokens == max_tokens


@pytest.mark.parametrize("echo", [False, True])
def test_offsets_are_where_tokens_begin(client: OpenAI, alone: Runtime, echo: bool) -> None:
    prompt = "Tim ate a pie – 5 €. Then"
    done = client.completions.create(
        model="demo", prompt=prompt, echo=echo, logprobs=0, max_tokens=30, temperature=1.5, seed=4
    )
    (choice,) = done.choices
    assert choice.logprobs is not None
    assert choice.logprobs.top_logprobs is None
    tokens, offsets = choice.logprobs.tokens, choice.logprobs.text_offset
    assert tokens is not None
    assert offsets is not None
    begun = False
    for token, offset in zip(tokens, offsets, strict=True):
        if not token.startswith("bytes:") and token != "|ENDOFTEXT|":
            at_start = token.removeprefix(" ") if echo and not begun else token
            assert choice.text[offset:].startswith(at_start)
            begun = True
    assert any(token.startswith("bytes:") for token in tokens) or not echo
    assert offsets == sorted(offsets)


def test_a_prompt_that_was_read_before_is_cached(client: OpenAI, alone: Runtime) -> None:
    prompt = "Mary had a little lamb, its fleece was white as snow."
    usages = [client.completions.create(model="demo", prompt=prompt, max_tokens=1).usage for _ in range(2)]
    details = [usage.prompt_tokens_details for usage in usages if usage is not None]
    cached = [detail.cached_tokens for detail in details if detail is not None]
    assert cached[1] == len(alone.tokenizer.encode(prompt)) - 1


def test_models_are_listed(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "demo"
    assert client.models.retrieve("demo") == model

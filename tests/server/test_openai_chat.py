"""``/v1/chat/completions`` by OpenAI's own client: every answer is the one that Runtime.generate returns."""

from __future__ import annotations

import re
from typing import Any

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletion
from openai_server import alone, client, one_thread_a_call, server, started

from adept_fast import Runtime
from adept_fast.chat import STOP, Turn, chat_prompt

__all__ = ["alone", "client", "one_thread_a_call", "server", "started"]

QUESTION = "What is the capital of Peru?"
USER: Any = {"role": "user", "content": QUESTION}


def content_of(done: ChatCompletion, index: int = 0) -> str:
    content = done.choices[index].message.content
    assert content is not None
    return content


def shown_piece(piece: str) -> str:
    """The text of a vocabulary's entry, as ``▁the`` or ``<0x41>``."""
    byte = re.fullmatch("<0x([0-9A-F]{2})>", piece)
    return chr(int(byte[1], 16)) if byte else piece.replace("▁", " ")


def test_an_answer_is_that_of_generate(client: OpenAI, alone: Runtime) -> None:
    done = client.chat.completions.create(
        model="demo", messages=[USER], seed=3, logprobs=True, top_logprobs=2, user="someone"
    )
    expected = alone.generate(
        chat_prompt(QUESTION), max_new_tokens=None, temperature=1, seed=3, logprobs=2, stop=STOP
    )
    (choice,) = done.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == expected.text.removeprefix(" ")
    assert choice.finish_reason == "stop"
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert expected.logprobs is not None
    for shown, entry in zip(choice.logprobs.content, expected.logprobs, strict=True):
        assert shown.logprob == entry.logprob
        assert [top.logprob for top in shown.top_logprobs] == [logprob for _, logprob in entry.top]
        assert [top.token for top in shown.top_logprobs] == [
            shown_piece(alone.tokenizer.piece(token_id)) for token_id, _ in entry.top
        ]
        assert shown.bytes is not None
        assert bytes(shown.bytes).decode() == shown.token
    assert "".join(shown.token for shown in choice.logprobs.content) == expected.text
    assert done.usage is not None
    assert done.usage.prompt_tokens == len(alone.tokenizer.encode(chat_prompt(QUESTION)))
    assert done.usage.completion_tokens == len(expected.token_ids)


def test_an_answer_can_be_sent_back_as_it_came(client: OpenAI, alone: Runtime) -> None:
    first = client.chat.completions.create(model="demo", messages=[USER], temperature=0)
    answer: Any = first.choices[0].message.model_dump()
    again: Any = {"role": "user", "content": "And of Japan?"}
    second = client.chat.completions.create(model="demo", messages=[USER, answer, again], temperature=0)
    prompt = chat_prompt("And of Japan?", [Turn(QUESTION, content_of(first))])
    expected = alone.generate(prompt, max_new_tokens=None, stop=STOP)
    assert content_of(second) == expected.text.removeprefix(" ")


def test_parts_of_a_message_are_joined(client: OpenAI, alone: Runtime) -> None:
    parts: Any = [{"type": "text", "text": QUESTION[:9]}, {"type": "text", "text": QUESTION[9:]}]
    done = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": parts}], temperature=0
    )
    expected = alone.generate(chat_prompt(QUESTION), max_new_tokens=None, stop=STOP)
    assert content_of(done) == expected.text.removeprefix(" ")


def test_choices_differ_and_the_first_is_the_one_alone(client: OpenAI) -> None:
    def create(n: int) -> ChatCompletion:
        message: Any = {"role": "user", "content": "Tell me a story about a fox."}
        return client.chat.completions.create(
            model="demo", messages=[message], n=n, seed=5, temperature=2, max_tokens=24
        )

    done = create(4)
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    assert len({choice.message.content for choice in done.choices}) == 4
    assert content_of(done) == content_of(create(1))


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_the_limit_count(client: OpenAI, name: str) -> None:
    limit: Any = {name: 3}
    done = client.chat.completions.create(model="demo", messages=[USER], temperature=0, **limit)
    assert done.usage is not None
    assert done.usage.completion_tokens == 3
    assert done.choices[0].finish_reason == "length"


def test_without_a_limit_an_answer_fills_the_context(client: OpenAI, alone: Runtime) -> None:
    done = client.chat.completions.create(
        model="demo", messages=[USER], temperature=0, extra_body={"ignore_eos": True}, stop=None
    )
    assert done.usage is not None
    if done.choices[0].finish_reason == "length":
        assert done.usage.total_tokens == alone.max_seq_len + 1  # the last token needs no position
    prompt = chat_prompt(QUESTION)
    expected = alone.generate(prompt, max_new_tokens=None, stop=STOP, ignore_eos=True)
    assert content_of(done) == expected.text.removeprefix(" ")


def test_own_stop_strings_are_added_to_those_of_the_format(client: OpenAI) -> None:
    def create(**more: Any) -> str:
        return content_of(
            client.chat.completions.create(model="demo", messages=[USER], temperature=0, **more)
        )

    assert create(stop=["Lima"]) == create().partition("Lima")[0]
    assert "human:" not in create(extra_body={"ignore_eos": True}, stop=["Lima?"])


NEUTRAL = {
    "tools": [],
    "tool_choice": "none",
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "store": False,
    "service_tier": "auto",
    "parallel_tool_calls": True,
    "reasoning_effort": None,
    "temperature": None,
    "n": None,
    "stop": None,
    "logit_bias": None,
    "max_tokens": None,
    "stream": None,
    "stream_options": None,
}


def test_values_that_ask_for_nothing_are_accepted(client: OpenAI) -> None:
    plain = client.chat.completions.create(model="demo", messages=[USER], seed=1)
    done = client.chat.completions.create(model="demo", messages=[USER], seed=1, extra_body=NEUTRAL)
    assert content_of(done) == content_of(plain)

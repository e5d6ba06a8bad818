"""Streams by OpenAI's own clients: their pieces are the whole answer, and whoever leaves frees a slot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk
from openai_server import alone, client, one_thread_a_call, server, started
from serving import RunningServer, until, wait_until
from thread_calls import Call

from adept_fast import Runtime
from adept_fast.chat import STOP, chat_prompt

__all__ = ["alone", "client", "one_thread_a_call", "server", "started"]

PROMPT = "Once upon a time"
FOX: Any = {"role": "user", "content": "Tell me a story about a fox."}
ENDLESS: dict[str, Any] = {
    "model": "demo",
    "prompt": PROMPT,
    "temperature": 0,
    "max_tokens": 200,
    "extra_body": {"ignore_eos": True},
}


def text_of(chunks: Iterable[Completion], index: int = 0) -> str:
    return "".join(choice.text for chunk in chunks for choice in chunk.choices if choice.index == index)


def content_of(chunks: Iterable[ChatCompletionChunk], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices)


def test_pieces_of_completions_are_the_whole(client: OpenAI) -> None:
    settings: dict[str, Any] = {
        "model": "demo",
        "prompt": [PROMPT, "Tim ate a pie – 5 €."],
        "n": 2,
        "seed": 3,
        "temperature": 1.8,
        "max_tokens": 30,
        "logprobs": 1,
        "echo": True,
    }
    whole = client.completions.create(**settings)
    chunks = list(client.completions.create(**settings, stream=True))
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)
    assert len(chunks) > 30
    for expected in whole.choices:
        mine = [c for chunk in chunks for c in chunk.choices if c.index == expected.index]
        assert "".join(choice.text for choice in mine) == expected.text
        assert [c.finish_reason for c in mine if c.finish_reason] == [expected.finish_reason]
        assert mine[-1].finish_reason is not None
        assert expected.logprobs is not None
        for name, value in expected.logprobs.model_dump().items():
            parts = [getattr(choice.logprobs, name) for choice in mine if choice.logprobs is not None]
            assert [entry for part in parts for entry in part] == value


def test_pieces_of_an_answer_are_the_whole(client: OpenAI, alone: Runtime) -> None:
    settings: dict[str, Any] = {"model": "demo", "messages": [FOX], "n": 3, "seed": 3, "max_tokens": 30}
    whole = client.chat.completions.create(**settings, logprobs=True, top_logprobs=1)
    chunks = list(client.chat.completions.create(**settings, logprobs=True, top_logprobs=1, stream=True))
    for expected in whole.choices:
        mine = [c for chunk in chunks for c in chunk.choices if c.index == expected.index]
        assert content_of(chunks, expected.index) == expected.message.content
        assert [c.delta.role for c in mine] == ["assistant"] + [None] * (len(mine) - 1)
        assert [c.finish_reason for c in mine] == [None] * (len(mine) - 1) + [expected.finish_reason]
        assert expected.logprobs is not None
        parts = [c.logprobs.content or [] for c in mine if c.logprobs is not None]
        assert [token for part in parts for token in part] == expected.logprobs.content
    solo = alone.generate(chat_prompt(FOX["content"]), max_new_tokens=30, temperature=1, seed=3, stop=STOP)
    assert content_of(chunks) == solo.text.removeprefix(" ")


def test_usage_comes_last_if_it_is_wanted(client: OpenAI) -> None:
    settings: dict[str, Any] = {"model": "demo", "stream": True, "stream_options": {"include_usage": True}}
    completions = list(client.completions.create(prompt=PROMPT, max_tokens=3, **settings))
    answers = list(client.chat.completions.create(messages=[FOX], max_tokens=3, **settings))
    for *others, last in (completions, answers):
        assert all(chunk.usage is None for chunk in others)
        assert last.choices == []
        assert last.usage is not None
        assert last.usage.completion_tokens == 3


def test_each_event_is_sent_when_its_step_has_ended(server: RunningServer, client: OpenAI) -> None:
    server.gate.close()
    server.gate.permit(1)
    stream = client.completions.create(**ENDLESS, stream=True)
    texts = [next(stream).choices[0].text]
    for _ in range(3):
        server.gate.permit(1)
        texts.append(next(stream).choices[0].text)
    assert all(texts)
    stream.close()


def assert_cancelled(server: RunningServer, requests: int) -> None:
    """All are cancelled while no step is taken, and end with the next one."""
    wait_until(lambda: len(server.gate.cancelled) == requests)
    server.gate.permit(1)
    wait_until(lambda: server.is_idle)


@pytest.mark.parametrize("n", [1, 4])
def test_closing_a_stream_ends_its_requests(server: RunningServer, client: OpenAI, n: int) -> None:
    server.gate.close()
    server.gate.permit(2)
    stream = client.completions.create(**ENDLESS, n=n, stream=True)
    next(stream)
    assert (server.service.load().running, server.service.load().waiting) == (min(n, 2), n - min(n, 2))
    stream.close()
    assert_cancelled(server, n)


def test_closing_an_async_stream_ends_its_request(server: RunningServer) -> None:
    async def leave() -> None:
        async with async_client(server) as client:
            stream = await client.chat.completions.create(model="demo", messages=[FOX], stream=True)
            await anext(aiter(stream))
            await stream.close()

    server.gate.close()
    server.gate.permit(2)
    asyncio.run(leave())
    assert_cancelled(server, 1)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("steps", [0, 2])
def test_leaving_before_the_response_ends_the_requests(
    server: RunningServer, n: int, stream: bool, steps: int
) -> None:
    """While they wait in the queue (no step), and while they run (not in a stream: it has begun by then)."""
    if stream and steps:
        return

    async def leave() -> None:
        async with async_client(server) as client:
            call = asyncio.create_task(client.completions.create(**ENDLESS, n=n, stream=stream))
            await until(lambda: sum(load(server)) == n)
            server.gate.permit(steps)
            await until(lambda: load(server)[0] == (min(n, 2) if steps else 0))
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

    server.gate.close()
    asyncio.run(leave())
    assert_cancelled(server, n)


def test_others_go_on_when_one_leaves(server: RunningServer, client: OpenAI, alone: Runtime) -> None:
    server.gate.close()
    server.gate.permit(1)
    stays = client.completions.create(**ENDLESS, stream=True)
    call = Call(lambda: client.chat.completions.create(model="demo", messages=[FOX], stream=True))
    wait_until(lambda: load(server) == (1, 1))
    server.gate.permit(1)
    leaves = call.result()
    leaves.close()
    wait_until(lambda: len(server.gate.cancelled) == 1)
    server.gate.open()
    expected = alone.generate(PROMPT, max_new_tokens=200, ignore_eos=True)
    assert text_of(list(stays)) == expected.text


def test_many_clients_at_once_get_what_each_gets_alone(server: RunningServer, alone: Runtime) -> None:
    prompts = [PROMPT, "a", "Humpty Dumpty sat", "human: What is 3 plus 4?\n\nadept:"]

    async def text(client: AsyncOpenAI, number: int) -> str:
        stream: AsyncIterator[Completion] = await client.completions.create(
            model="demo", prompt=prompts[number % 4], seed=number, max_tokens=9 + number, stream=True
        )
        return text_of([chunk async for chunk in stream])

    async def texts() -> list[str]:
        async with async_client(server) as client:
            return await asyncio.gather(*(text(client, number) for number in range(12)))

    found = asyncio.run(texts())
    for number in range(12):
        expected = alone.generate(prompts[number % 4], seed=number, max_new_tokens=9 + number, temperature=1)
        assert found[number] == expected.text


def load(server: RunningServer) -> tuple[int, int]:
    now = server.service.load()
    return now.running, now.waiting


def async_client(server: RunningServer) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)

"""Ray Serve on two nodes: all requests are answered, once, as they are alone, whatever happens to a node."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

pytest.importorskip("ray", reason="Ray is not installed")

from ray_cluster import RayCluster

from adept_fast import Runtime, SamplingParams
from adept_fast.chat.format import AnswerStripper

pytestmark = pytest.mark.slow

CONTEXT, SLOTS, CLIENTS = 512, 8, 20
REQUESTS = 200
TURNS = ("What is the capital of Peru?", "And which country has Nairobi as its capital?", "What is 3 plus 4?")
TEXTS = ("Once upon a time", "The quick brown fox", "Humpty Dumpty sat on a wall. " * 4, "ünïcödé 世界 🙂 ")


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with RayCluster(replicas=2, batch_size=SLOTS, max_seq_len=CONTEXT, log_format="json") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def alone() -> Runtime:
    return Runtime.load("demo", device="cpu", max_seq_len=CONTEXT, progress=False)


@dataclass
class Answered:
    """What a client got for a request."""

    text: str
    finish_reason: str | None
    cached_tokens: int = 0


async def ask(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Answered:
    """Send a request, and check that it is answered once."""
    if not body.get("stream"):
        response = await http.post(path, json=body)
        assert response.status_code == 200, response.text
        (choice,), usage = response.json()["choices"], response.json()["usage"]
        text = choice["text"] if "text" in choice else choice["message"]["content"]
        return Answered(text, choice["finish_reason"], usage["prompt_tokens_details"]["cached_tokens"])
    async with http.stream("POST", path, json=body) as response:
        assert response.status_code == 200
        data = [line.removeprefix("data: ") async for line in response.aiter_lines() if line]
    assert data.count("[DONE]") == 1
    assert data[-1] == "[DONE]"
    choices = [choice for event in data[:-1] for choice in json.loads(event)["choices"]]
    texts = [choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices]
    (reason,) = {choice["finish_reason"] for choice in choices} - {None}
    return Answered("".join(texts), reason)


def settings_of(draw: random.Random) -> dict[str, Any]:
    """Greedy, or with a seed."""
    settings: dict[str, Any] = {"temperature": 0.0}
    if draw.random() < 0.5:
        settings = {"temperature": draw.choice([0.7, 1.3]), "top_p": 0.9, "seed": draw.randrange(2**40)}
    return settings


@dataclass
class Expected:
    """The answers that a Runtime gives to requests that come one by one."""

    runtime: Runtime
    known: dict[str, Answered] = field(default_factory=dict)

    def completion(self, body: dict[str, Any]) -> Answered:
        return self._of(body["prompt"], body, ())

    def chat(self, body: dict[str, Any]) -> Answered:
        tokenizer = self.runtime.tokenizer
        ids = tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True)
        return self._of(ids, body, tokenizer.chat_format.stop)

    def _of(self, prompt: Any, body: dict[str, Any], stop: tuple[str, ...]) -> Answered:
        params = SamplingParams(
            max_new_tokens=body["max_tokens"],
            stop=stop,
            **{name: body[name] for name in ("temperature", "top_p", "seed") if name in body},
        )
        (generation,) = self.runtime.generate([prompt], params)
        text = AnswerStripper().push(generation.text) if "messages" in body else generation.text
        reason = "stop" if generation.finish_reason == "eos" else generation.finish_reason
        return Answered(text, reason)


async def completions(http: httpx.AsyncClient, expected: Expected, draw: random.Random) -> int:
    """One request, and how many these are."""
    body = {"prompt": draw.choice(TEXTS), "max_tokens": draw.choice([8, 60, 150]), **settings_of(draw)}
    body["stream"] = draw.random() < 0.5
    found = await ask(http, "/v1/completions", body)
    wanted = await asyncio.to_thread(expected.completion, body)
    assert (found.text, found.finish_reason) == (wanted.text, wanted.finish_reason), body
    return 1


async def conversation(http: httpx.AsyncClient, expected: Expected, draw: random.Random) -> int:
    """Several requests, each of which begins as the one before."""
    messages: list[dict[str, str]] = []
    for turn in TURNS:
        messages = [*messages, {"role": "user", "content": turn}]
        body = {"messages": messages, "max_tokens": draw.choice([20, 80]), **settings_of(draw)}
        body["stream"] = draw.random() < 0.5
        found = await ask(http, "/v1/chat/completions", body)
        wanted = await asyncio.to_thread(expected.chat, body)
        assert (found.text, found.finish_reason) == (wanted.text, wanted.finish_reason), body
        messages = [*messages, {"role": "assistant", "content": found.text}]
    return len(TURNS)


def test_a_node_dies_and_another_joins(cluster: RayCluster, alone: Runtime) -> None:
    """Every one of the requests is answered, once, as it is alone; some went on at another replica."""
    answered, is_due = 0, threading.Event()

    async def client(http: httpx.AsyncClient, draw: random.Random) -> None:
        nonlocal answered
        while answered < REQUESTS:
            answered += await draw.choice([completions, conversation])(http, Expected(alone), draw)
            if answered >= REQUESTS // 4:
                is_due.set()

    async def all_clients() -> None:
        async with cluster.client() as http:
            await asyncio.gather(*(client(http, random.Random(seed)) for seed in range(CLIENTS)))

    with ThreadPoolExecutor(1) as executor:
        asking = executor.submit(asyncio.run, all_clients())
        asking.add_done_callback(lambda _: is_due.set())
        is_due.wait()
        (worker,) = cluster.workers
        cluster.kill_node(worker)
        cluster.add_node()
        asking.result()
    assert answered >= REQUESTS
    assert cluster.logged("an answer goes on at another replica")

"""Adept's API: its parameters, limits and answers, held to what the Runtime itself gives."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from asgi import with_client

from adept_fast import Runtime
from adept_fast.server.service import Service

PROMPTS = ["Once upon a time", "human: What is the capital of France?\n\nadept:", "One, two, three"]


def put(runtime: Runtime, body: Any, **settings: Any) -> httpx.Response:
    async def work(client: httpx.AsyncClient, _service: Service) -> httpx.Response:
        headers = {"Content-Type": "application/json"}
        return await client.put("/api", content=json.dumps(body), headers=headers)

    return with_client(runtime, work, **settings)


def test_the_texts_are_those_of_the_runtime(demo: Runtime) -> None:
    answer = put(demo, {"prompts": PROMPTS, "tokens_to_generate": 12, "top_k": 1}).json()
    expected = demo.generate(PROMPTS, max_new_tokens=12, add_bos=False)
    assert answer["generations"] == [generation.text for generation in expected]
    assert answer["text"] == [p + g.text for p, g in zip(PROMPTS, expected, strict=True)]
    assert answer["logprobs"] is None
    for prompt, generation, tokens in zip(PROMPTS, expected, answer["human_readable_tokens"], strict=True):
        prompt_ids = demo.tokenizer.encode(prompt, add_bos=False)
        assert len(tokens) == len(prompt_ids) + len(generation.token_ids)
        assert "".join(tokens).strip() == (prompt + generation.text).strip()


@pytest.mark.parametrize(
    ("given", "params"),
    [
        ({"temperature": 0.7, "top_k": 40}, {"temperature": 0.7, "top_k": 40}),
        ({"temperature": 1, "top_p": 0.8}, {"temperature": 1.0, "top_p": 0.8}),
        ({"temperature": 100.0, "top_k": 0, "top_p": 0}, {"temperature": 100.0}),
        ({}, {"temperature": 1.0}),
    ],
)
def test_a_seed_gives_each_prompt_the_text_that_it_gets_alone(
    demo: Runtime, given: dict[str, Any], params: dict[str, Any]
) -> None:
    body = {"prompts": PROMPTS, "tokens_to_generate": 10, "random_seed": 7, **given}
    params |= {"max_new_tokens": 10, "seed": 7, "add_bos": False}
    expected = [demo.generate(prompt, **params).text for prompt in PROMPTS]
    assert put(demo, body).json()["generations"] == expected


def test_defaults(demo: Runtime) -> None:
    answer = put(demo, {"prompts": ["Once upon a time"], "random_seed": 3}).json()
    expected = demo.generate("Once upon a time", max_new_tokens=64, temperature=1.0, seed=3, add_bos=False)
    assert answer["generations"] == [expected.text]


def test_without_a_seed_texts_differ(demo: Runtime) -> None:
    body = {"prompts": ["Once upon a time"] * 4, "temperature": 5.0}
    assert len(set(put(demo, body).json()["generations"])) > 1


def test_log_probabilities_are_those_of_score(demo: Runtime) -> None:
    body = {"prompts": PROMPTS, "tokens_to_generate": 8, "top_k": 1, "logprobs": True, "add_BOS": True}
    answer = put(demo, body).json()
    for prompt, logprobs, tokens in zip(
        PROMPTS, answer["logprobs"], answer["human_readable_tokens"], strict=True
    ):
        generation = demo.generate(prompt, max_new_tokens=8, add_bos=True)
        ids = demo.tokenizer.encode(prompt, add_bos=True) + generation.token_ids
        (score,) = demo.score([ids])
        assert logprobs == pytest.approx(score.logprobs[1:], abs=1e-4)
        assert len(tokens) == len(logprobs) + 1


def test_prompts_can_be_scored_alone(demo: Runtime) -> None:
    answer = put(demo, {"prompts": [PROMPTS[0]], "tokens_to_generate": 0, "logprobs": True}).json()
    (score,) = demo.score([PROMPTS[0]], add_bos=False)
    assert answer["text"] == [PROMPTS[0]]
    assert answer["generations"] == [""]
    assert answer["logprobs"] == [pytest.approx(score.logprobs[1:], abs=1e-5)]


def test_an_empty_prompt_is_bos(demo: Runtime) -> None:
    answer = put(demo, {"prompts": [""], "tokens_to_generate": 5, "top_k": 1}).json()
    expected = demo.generate([demo.tokenizer.encode("", add_bos=True)], max_new_tokens=5)[0]
    assert answer["text"] == [expected.text]


def test_a_hundred_and_twenty_eight_prompts(demo: Runtime) -> None:
    body = {"prompts": ["Once"] * 128, "tokens_to_generate": 2, "top_k": 1}
    answer = put(demo, body).json()
    assert answer["generations"] == [demo.generate("Once", max_new_tokens=2, add_bos=False).text] * 128


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, ["prompts"]),
        ([], ["object"]),
        ({"prompts": []}, ["prompts"]),
        ({"prompts": "Once"}, ["prompts"]),
        ({"prompts": ["a"] * 129}, ["prompts", "129", "128"]),
        ({"prompts": [1]}, ["prompts"]),
        ({"prompts": ["a"], "tokens_to_generate": -1}, ["tokens_to_generate", "-1"]),
        ({"prompts": ["a"], "tokens_to_generate": 0}, ["tokens_to_generate", "logprobs"]),
        ({"prompts": ["a"], "tokens_to_generate": "5"}, ["tokens_to_generate"]),
        ({"prompts": ["a"], "tokens_to_generate": 10**6}, ["prompts[0]", "1000000"]),
        ({"prompts": ["a"], "temperature": 0}, ["temperature", "0"]),
        ({"prompts": ["a"], "temperature": 100.5}, ["temperature", "100"]),
        ({"prompts": ["a"], "temperature": 1e-30}, ["temperature"]),
        ({"prompts": ["a"], "top_k": 1001}, ["top_k", "1000"]),
        ({"prompts": ["a"], "top_k": -1}, ["top_k"]),
        ({"prompts": ["a"], "top_p": 1.1}, ["top_p"]),
        ({"prompts": ["a"], "top_k": 5, "top_p": 0.5}, ["top_k", "top_p"]),
        ({"prompts": ["a"], "add_BOS": 1}, ["add_BOS"]),
        ({"prompts": ["a"], "random_seed": -1}, ["random_seed"]),
        ({"prompts": ["a"], "random_seed": 2**63}, ["random_seed"]),
        ({"prompts": ["a"], "logprobs": "yes"}, ["logprobs"]),
        ({"prompts": ["a"], "no_log": None, "max_len": 5}, ["max_len"]),
        ({"prompts": ["\ud800"]}, ["JSON"]),
        ({"prompts": ["word " * 2000]}, ["prompts[0]", "tokens"]),
    ],
)
def test_a_wrong_parameter_is_named_in_one_sentence(demo: Runtime, body: Any, words: list[str]) -> None:
    response = put(demo, body)
    assert response.status_code == 400, response.text
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert "\n" not in response.text
    assert all(word in response.text for word in words), response.text


def test_only_put(demo: Runtime) -> None:
    async def work(client: httpx.AsyncClient, _service: Service) -> int:
        return (await client.post("/api", json={"prompts": ["a"]})).status_code

    assert with_client(demo, work) == 405


def test_a_deadline(demo: Runtime) -> None:
    response = put(demo, {"prompts": ["Once"], "tokens_to_generate": 400}, request_seconds=1e-9)
    assert response.status_code == 504
    assert response.headers["content-type"].startswith("text/plain")


def test_health_of_adepts_clients(demo: Runtime) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        healthy = await client.get("/healthz")
        assert (healthy.status_code, healthy.text) == (200, "ok")
        await service.stop(0)
        stopped = await client.get("/healthz")
        assert (stopped.status_code, stopped.text) == (503, "the server is stopping")
        refused = await client.put("/api", json={"prompts": ["a"]})
        assert refused.status_code == 503
        assert refused.headers["content-type"].startswith("text/plain")

    with_client(demo, work)


def test_a_client_that_leaves_frees_its_slots(demo: Runtime) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        body = {"prompts": ["Once upon a time"] * 3, "tokens_to_generate": 400, "top_k": 1}
        request = asyncio.create_task(client.put("/api", json=body))
        while service.load().running < 3:
            assert not request.done(), request.result().text
            await asyncio.sleep(0.001)
        request.cancel()
        while service.load().running:
            await asyncio.sleep(0.001)

    with_client(demo, work)

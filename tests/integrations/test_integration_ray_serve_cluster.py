"""Ray Serve on two nodes: all requests are answered, once, as they are alone, whatever happens to a node."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

pytest.importorskip("ray", reason="Ray is not installed")

from ray_cluster import RayCluster
from serving import wait_until

from adept_fast import Runtime, SamplingParams
from adept_fast.chat.format import AnswerStripper

pytestmark = pytest.mark.slow

CONTEXT, SLOTS, CLIENTS, REQUESTS = 512, 8, 16, 200
QUESTIONS = ("What is the capital of Peru?", "Tell me a story about a fox.", "And then?", "What is 3 plus 4?")
TEXTS = ("Once upon a time", "The quick brown fox", "Humpty Dumpty sat on a wall. " * 4, "ünïcödé 世界 🙂 ")
LOST = "an answer goes on at another replica"


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


@dataclass
class Turn:
    """A request, and the answer that a Runtime gives it alone."""

    path: str
    body: dict[str, Any]
    text: str
    finish_reason: str


def settings_of(draw: random.Random) -> dict[str, Any]:
    """Greedy, or with a seed."""
    drawn = {"temperature": draw.choice([0.7, 1.3]), "top_p": 0.9, "seed": draw.randrange(2**40)}
    return draw.choice([drawn, {"temperature": 0.0}])


def completion(runtime: Runtime, draw: random.Random) -> list[Turn]:
    body = {"prompt": draw.choice(TEXTS), "max_tokens": draw.choice([8, 30, 60]), **settings_of(draw)}
    return [turn(runtime, "/v1/completions", body, body["prompt"], ())]


def conversation(runtime: Runtime, draw: random.Random) -> list[Turn]:
    """Several requests, each of which begins as the one before."""
    messages: list[dict[str, str]] = []
    turns: list[Turn] = []
    tokenizer = runtime.tokenizer
    for question in draw.sample(QUESTIONS, 3):
        messages = [*messages, {"role": "user", "content": question}]
        body = {"messages": messages, "max_tokens": 30, **settings_of(draw)}
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        turns.append(turn(runtime, "/v1/chat/completions", body, ids, tokenizer.chat_format.stop))
        messages = [*messages, {"role": "assistant", "content": turns[-1].text}]
    return turns


def turn(runtime: Runtime, path: str, body: dict[str, Any], prompt: Any, stop: tuple[str, ...]) -> Turn:
    settings = {name: body[name] for name in ("temperature", "top_p", "seed") if name in body}
    params = SamplingParams(max_new_tokens=body["max_tokens"], stop=stop, **settings)
    (generation,) = runtime.generate([prompt], params)
    text = AnswerStripper().push(generation.text) if "messages" in body else generation.text
    reason = "stop" if generation.finish_reason == "eos" else generation.finish_reason
    return Turn(path, body, text, reason)


def test_a_node_dies_and_another_joins(cluster: RayCluster, alone: Runtime) -> None:
    """Every one of the requests is answered, once, as it is alone; some went on at another replica."""
    draw = random.Random(7)
    catalogue = [draw.choice([completion, conversation])(alone, draw) for _ in range(24)]
    answered, is_due = 0, threading.Event()

    async def client(http: httpx.AsyncClient, draw: random.Random) -> None:
        nonlocal answered
        while answered < REQUESTS:
            for turn in draw.choice(catalogue):
                body = turn.body | {"stream": draw.random() < 0.5}
                found = await ask(http, turn.path, body)
                assert (found.text, found.finish_reason) == (turn.text, turn.finish_reason), body
                answered += 1
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
    assert cluster.logged(LOST)
    with httpx.Client(base_url=cluster.url) as http:
        wait_until(lambda: metric(http, "slots") == 2 * SLOTS)  # the other node has its replica


def test_a_conversation_returns_to_the_replica_that_has_its_beginning(cluster: RayCluster) -> None:
    """Each turn but the first is read from its new tokens on, whatever other conversations there are."""

    async def talk(http: httpx.AsyncClient, subject: int) -> list[int]:
        messages: list[dict[str, str]] = []
        cached = []
        for question in QUESTIONS:
            messages = [*messages, {"role": "user", "content": f"{subject}. " * 10 + question}]
            found = await ask(http, "/v1/chat/completions", {"messages": messages, "max_tokens": 8})
            messages = [*messages, {"role": "assistant", "content": found.text}]
            cached.append(found.cached_tokens)
        return cached

    async def run() -> list[list[int]]:
        async with cluster.client() as http:
            return await asyncio.gather(*(talk(http, subject) for subject in range(10, 16)))

    for first, *later in asyncio.run(run()):
        assert first < 20
        assert min(later) >= 20
        assert later == sorted(later)


def test_an_engine_that_dies_costs_no_request_and_its_replica_is_replaced(cluster: RayCluster) -> None:
    def names() -> set[str]:
        return {json.loads(line)["replica"] for line in cluster.logged("ready") if '"replica"' in line}

    async def answers() -> list[Answered]:
        async with cluster.client() as http:
            body = {"prompt": "Once upon a time", "max_tokens": 200, "ignore_eos": True, "temperature": 0}
            return await asyncio.gather(*(ask(http, "/v1/completions", body) for _ in range(8)))

    before, lost = names(), len(cluster.logged(LOST))
    with ThreadPoolExecutor(1) as executor:
        asking = executor.submit(asyncio.run, answers())
        cluster.break_an_engine()
        assert len({answer.text for answer in asking.result()}) == 1
    asyncio.run(answers())  # there were requests for all replicas, so the broken one has failed
    assert len(cluster.logged(LOST)) > lost
    wait_until(lambda: len(names() - before) == 1)
    assert cluster.logged("the engine failed")


def test_a_client_that_leaves_frees_its_slot(cluster: RayCluster) -> None:
    body = {"prompt": "Once upon a time", "max_tokens": 400, "ignore_eos": True, "stream": True}
    with httpx.Client(base_url=cluster.url) as http:
        before = metric(http, 'answers_total{finish_reason="cancelled"}')
        with http.stream("POST", "/v1/completions", json=body) as response:
            events = response.iter_lines()
            assert "data:" in next(events)
        wait_until(lambda: metric(http, 'answers_total{finish_reason="cancelled"}') == before + 1)
        wait_until(lambda: metric(http, "answers_running") == 0)
        with pytest.raises(httpx.ReadTimeout):
            http.post("/v1/completions", json=body | {"stream": False}, timeout=0.3)
        wait_until(lambda: metric(http, 'answers_total{finish_reason="cancelled"}') == before + 2)
        wait_until(lambda: metric(http, "answers_running") == 0)


def metric(http: httpx.Client, name: str) -> float:
    lines = http.get("/metrics").text.splitlines()
    values = [line.rpartition(" ")[2] for line in lines if line.startswith(f"adept_fast_{name} ")]
    return float(values[0]) if values else 0.0


def test_other_arguments_cost_no_request(cluster: RayCluster) -> None:
    """The server and the replicas end while answers run: they finish, and others take what comes."""
    is_over, begun = threading.Event(), threading.Semaphore(0)

    async def client(http: httpx.AsyncClient) -> int:
        body = {"prompt": "Once upon a time", "max_tokens": 100, "ignore_eos": True, "temperature": 0}
        count = 0
        while not is_over.is_set():
            begun.release()
            await ask(http, "/v1/completions", body | {"stream": bool(count % 2)})
            count += 1
        return count

    async def clients() -> list[int]:
        async with cluster.client() as http:
            return await asyncio.gather(*(client(http) for _ in range(8)))

    with ThreadPoolExecutor(1) as executor:
        asking = executor.submit(asyncio.run, clients())
        for _ in range(16):
            begun.acquire()
        cluster.deploy(replicas=1, tensor_parallel=2, cpus=0.5, max_choices=3)
        refused = httpx.post(f"{cluster.url}/v1/completions", json={"prompt": "a", "n": 4})
        cluster.deploy()
        is_over.set()
        assert min(asking.result()) > 0
    assert refused.json()["error"]["message"] == "n is 4; expected at most 3"
    assert [line for line in cluster.logged("ready") if '"ranks": 2' in line]


def test_it_is_one_server_whose_responses_have_one_id(cluster: RayCluster) -> None:
    with httpx.Client(base_url=cluster.url) as http:
        response = http.get("/v1/models", headers={"X-Request-Id": "mine"})
        assert response.headers.get_list("x-request-id") == ["mine"]
        assert response.json()["data"][0]["max_model_len"] == CONTEXT
        assert http.get("/v1/models", headers={"Host": "stranger.example"}).status_code == 403
        assert http.get("/health").json() == {"status": "ok", "reason": None}
        wait_until(lambda: metric(http, "slots") == 2 * SLOTS)
        assert "adept-fast" in http.get("/").text
    ready = [json.loads(line) for line in cluster.logged("ready")]
    described = [line for line in ready if "replica" in line]
    assert {"device", "dtype", "layout", "slots", "context", "step_tokens"} <= described[0].keys()

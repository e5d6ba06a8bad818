"""A server whose replicas are elsewhere answers as ``adept-fast serve`` does, also when replicas are lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import httpx
import pytest

pytest.importorskip("ray", reason="Ray is not installed")

from asgi import client_of, with_client
from local_replicas import LocalReplicas
from serving import until

from adept_fast import Runtime, SamplingParams
from adept_fast.arguments import ParameterError
from adept_fast.engine.scheduler import QueueFullError
from adept_fast.engine.sequence import Generation, GenerationError, GenerationEvent, Request, TokenLogprob
from adept_fast.integrations.ray_serve.local_only import LocalOnly
from adept_fast.integrations.ray_serve.messages import Accepted, Refused
from adept_fast.integrations.ray_serve.remote_answer import MAX_LOST, RemoteAnswer
from adept_fast.integrations.ray_serve.remote_service import RemoteService
from adept_fast.integrations.ray_serve.replay import Replay, ReplayError
from adept_fast.server.answering import Load, ServiceStoppingError
from adept_fast.server.app import create_app
from adept_fast.server.service import Service
from adept_fast.server.settings import Settings

T = TypeVar("T")
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime.load("demo", device="cpu", max_seq_len=256, max_batch_size=8, progress=False)


def with_replicas(
    runtime: Runtime,
    work: Callable[[RemoteService, LocalReplicas], Awaitable[T]],
    lost_after: Iterable[int | None] = (),
    **settings: Any,
) -> T:
    """The result of ``work``, on an event loop of its own."""

    async def run() -> T:
        service = Service(runtime)
        service.start()
        try:
            replicas = LocalReplicas(service, lost_after)
            return await work(replicas.remote(runtime, **settings), replicas)
        finally:
            await service.stop(0)

    return asyncio.run(run())


def request_of(runtime: Runtime, **params: Any) -> Request:
    params = {"max_new_tokens": 24, "seed": 3, "temperature": 0.8, "logprobs": 2, **params}
    return Request(runtime.tokenizer.encode(PROMPT), SamplingParams(**params))


def comparable(generation: Generation) -> tuple[Any, ...]:
    """All of it but for the seconds."""
    timings = generation.timings
    return (
        generation.text,
        generation.token_ids,
        generation.finish_reason,
        generation.logprobs,
        generation.prompt_logprobs,
        timings.prompt_tokens,
        timings.decode_tokens,
    )


async def finished(answer: RemoteAnswer) -> tuple[list[GenerationEvent], Generation]:
    return [event async for event in answer], answer.generation()


@pytest.mark.parametrize("lost_after", [[], [0], [1], [2], [5, None], [5, 3, 9, None], [12, 2]])
def test_an_answer_is_that_of_a_runtime_whenever_replicas_are_lost(
    runtime: Runtime, lost_after: list[int | None]
) -> None:
    alone = runtime.generate([PROMPT], request_of(runtime).params)[0]

    async def work(service: RemoteService, replicas: LocalReplicas) -> None:
        (answer,) = service.submit([request_of(runtime)])
        events, generation = await finished(answer)
        assert comparable(generation) == comparable(alone)
        assert "".join(event.text for event in events) == alone.text
        assert [token for event in events for token in event.token_ids] == alone.token_ids
        assert [entry for event in events for entry in event.logprobs or ()] == alone.logprobs
        assert [event.finish_reason for event in events if event.finish_reason] == [alone.finish_reason]
        lost = [f"replica {at + 1}" for at, count in enumerate(lost_after) if count]  # it said who it was
        assert replicas.requests[-1].avoid == set(lost[: len(replicas.requests) - 1])
        assert all(stream.is_cancelled for stream in replicas.streams)
        assert service.load() == Load(8, 0, 0)

    with_replicas(runtime, work, lost_after)


def test_a_request_without_a_seed_gets_one_before_it_is_sent(runtime: Runtime) -> None:
    async def work(service: RemoteService, replicas: LocalReplicas) -> None:
        answers = service.submit([request_of(runtime, seed=None) for _ in range(2)])
        texts = [(await finished(answer))[1].text for answer in answers]
        seeds = {request.params.seed for request in replicas.requests}
        assert len(seeds) == 2  # three requests were sent, one of them again
        assert None not in seeds
        for request in replicas.requests:
            assert runtime.generate([PROMPT], request.params)[0].text in texts

    with_replicas(runtime, work, [6, None])


def test_an_answer_that_ends_every_replica_ends_few_of_them(runtime: Runtime) -> None:
    async def work(service: RemoteService, replicas: LocalReplicas) -> None:
        (answer,) = service.submit([request_of(runtime)])
        with pytest.raises(RuntimeError, match="4 replicas failed to answer the request"):
            await finished(answer)
        assert len(replicas.requests) == MAX_LOST + 1
        assert service.load().running == 0

    with_replicas(runtime, work, [3] * 10)


def test_a_replica_that_is_lost_after_the_last_event_is_not_replaced(runtime: Runtime) -> None:
    alone = runtime.generate([PROMPT], max_new_tokens=1)[0]

    async def work(service: RemoteService, replicas: LocalReplicas) -> None:
        (answer,) = service.submit([Request(runtime.tokenizer.encode(PROMPT), SamplingParams(1))])
        _, generation = await finished(answer)
        assert (generation.text, generation.finish_reason) == (alone.text, alone.finish_reason)
        assert len(replicas.requests) == 1

    with_replicas(runtime, work, [2])  # Accepted and Progress, but not Finished


def test_what_fails_on_every_replica_is_not_repeated(runtime: Runtime) -> None:
    class Refusing(LocalReplicas):
        def call(self, request: Any) -> Any:
            stream = super().call(request)

            async def messages() -> Any:
                yield Accepted("a")
                yield Refused("the logits hold a NaN")

            stream._messages = messages()
            return stream

    async def run() -> None:
        replicas = Refusing(Service(runtime))
        (answer,) = replicas.remote(runtime).submit([request_of(runtime)])
        with pytest.raises(GenerationError, match="NaN"):
            await finished(answer)
        assert len(replicas.requests) == 1

    asyncio.run(run())


@pytest.mark.parametrize("reason", ["interrupted", "timeout"])
def test_an_answer_that_is_cut_off_frees_its_slot(runtime: Runtime, reason: str) -> None:
    async def work(service: RemoteService, replicas: LocalReplicas) -> None:
        request = request_of(runtime, max_new_tokens=None, ignore_eos=True)
        if reason == "timeout":
            deadline = asyncio.get_running_loop().time()  # the clock of time.monotonic
            request = Request(request.prompt_ids, request.params, deadline=deadline)
        (answer,) = service.submit([request])
        if reason == "interrupted":
            await anext(answer)
            answer.cancel()
        events, generation = await finished(answer)
        assert events[-1].finish_reason == generation.finish_reason == reason
        assert service.load().running == 0
        await until(lambda: runtime.engine.counts() == (0, 0))

    with_replicas(runtime, work)


def test_what_is_too_much_is_refused_before_it_is_sent(runtime: Runtime) -> None:
    async def work(service: RemoteService, replicas: LocalReplicas) -> None:
        request = request_of(runtime)
        with pytest.raises(ParameterError, match="13 prompts and choices came at once; expected at most 12"):
            service.submit([request] * 13)
        answers = service.submit([request] * 10)
        assert service.load() == Load(8, 8, 2)
        with pytest.raises(
            QueueFullError, match="2 requests wait and 3 more came; expected at most 4"
        ) as full:
            service.submit([request] * 3)
        assert full.value.retry_after_seconds > 0
        answers += service.submit([request] * 2)
        for answer in answers:
            await finished(answer)
        assert len(replicas.requests) == 12
        await service.stop(0)
        with pytest.raises(ServiceStoppingError):
            service.submit([request])

    with_replicas(runtime, work, count=2, slots=4, max_queue=2)


def test_a_service_that_stops_lets_answers_finish_or_cuts_them_off(runtime: Runtime) -> None:
    async def work(service: RemoteService, replicas: LocalReplicas) -> None:
        (answer,) = service.submit([request_of(runtime)])
        await service.stop(60)
        assert answer.generation().finish_reason == "length"
        assert not service.is_ready

    async def cut(service: RemoteService, replicas: LocalReplicas) -> None:
        (answer,) = service.submit([request_of(runtime, max_new_tokens=None, ignore_eos=True)])
        await service.stop(0)
        assert (await finished(answer))[1].finish_reason == "interrupted"

    with_replicas(runtime, work)
    with_replicas(runtime, cut)


def event(*token_ids: int, text: str = "", end: Any = None) -> GenerationEvent:
    return GenerationEvent(token_ids, text, tuple(TokenLogprob(i, -1.0) for i in token_ids), end)


def test_a_replay_may_be_cut_otherwise() -> None:
    replay = Replay()
    assert replay.news(event(1, 2, text="ab")) == event(1, 2, text="ab")
    assert replay.news(event(3)) == event(3)
    replay.restart()
    assert replay.news(event(1)) is None
    assert replay.news(event(2, 3, 4, text="abc")) == event(4, text="c")
    assert replay.news(event(text="d", end="eos")) == event(text="d", end="eos")
    assert (replay.text, replay.token_ids, len(replay.logprobs)) == ("abcd", [1, 2, 3, 4], 4)


@pytest.mark.parametrize("other", [event(1, 9, text="ab"), event(1, 2, text="ax")])
def test_a_replay_that_differs_is_an_error(other: GenerationEvent) -> None:
    replay = Replay()
    replay.news(event(1, 2, text="ab"))
    replay.restart()
    with pytest.raises(ReplayError, match="expected machines of one kind"):
        replay.news(other)


BODIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "completion": ("POST", "/v1/completions", {"prompt": PROMPT, "seed": 5, "n": 3, "logprobs": 2}),
    "echo": ("POST", "/v1/completions", {"prompt": PROMPT, "seed": 5, "echo": True, "logprobs": 0}),
    "prompts": ("POST", "/v1/completions", {"prompt": [PROMPT, "a"], "temperature": 0, "max_tokens": 30}),
    "chat": ("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "seed": 1}),
    "Adept's": ("PUT", "/api", {"prompts": [PROMPT], "random_seed": 1, "logprobs": True}),
    "tokens": ("POST", "/tokenize", {"prompt": PROMPT}),
    "text": ("POST", "/detokenize", {"tokens": [340, 341]}),
    "models": ("GET", "/v1/models", {}),
    "health": ("GET", "/health", {}),
    "wrong": ("POST", "/v1/completions", {"prompt": PROMPT, "temperature": 99}),
    "too long": ("POST", "/v1/completions", {"prompt": [340] * 300}),
    "page": ("GET", "/", {}),
    "document": ("GET", "/openapi.json", {}),
}


@pytest.mark.parametrize("name", BODIES)
def test_responses_are_those_of_adept_fast_serve(runtime: Runtime, name: str) -> None:
    """In streams too; a replica is lost meanwhile."""
    method, path, body = BODIES[name]

    async def responses(http: httpx.AsyncClient) -> list[Any]:
        found = []
        for more in ({}, {"stream": True}) if "completion" in path else ({},):
            response = await http.request(method, path, json=body | more if body else None)
            found.append((response.status_code, without_ids(response.text)))
        return found

    async def remote(service: RemoteService, _: LocalReplicas) -> list[Any]:
        async with client_of(create_app(service, Settings("demo"))) as http:
            return await responses(http)

    async def local(http: httpx.AsyncClient, _: Service) -> list[Any]:
        return await responses(http)

    assert with_replicas(runtime, remote, [4]) == with_client(runtime, local)


def without_ids(text: str) -> Any:
    """A body, or the data of a stream's events, without what differs from request to request."""
    if text.startswith("data: "):
        events = [line.removeprefix("data: ") for line in text.splitlines() if line]
        bodies = [event if event == "[DONE]" else without_ids(event) for event in events]
        return sorted(bodies, key=str)  # those of several choices come as they come
    if not text.startswith("{"):
        return text
    body = json.loads(text)
    for name in ("id", "created", "usage"):  # how much was cached depends on what came before
        body.pop(name, None)
    for entry in body.get("data", []):
        entry.pop("created", None)
    return body


def test_a_client_that_leaves_cancels_its_request(runtime: Runtime) -> None:
    async def work(service: RemoteService, replicas: LocalReplicas) -> None:
        app = create_app(service, Settings("demo"))
        body = json.dumps({"prompt": PROMPT, "max_tokens": 200, "ignore_eos": True, "stream": True}).encode()
        left = asyncio.Event()
        parts = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if parts:
                return parts.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if b"data:" in message.get("body", b""):
                left.set()

        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        scope = {
            "type": "http", "method": "POST", "path": "/v1/completions", "headers": headers,
            "query_string": b"", "http_version": "1.1", "scheme": "http", "root_path": "",
        }  # fmt: skip
        await app(scope, receive, send)
        assert service.load() == Load(8, 0, 0)
        assert replicas.streams[0].is_cancelled
        await until(lambda: runtime.engine.counts() == (0, 0))

    with_replicas(runtime, work)


@pytest.mark.parametrize(
    ("client", "status"),
    [("127.0.0.1", 200), ("127.8.9.1", 200), ("::1", 200), ("::ffff:127.0.0.1", 200)]
    + [("10.0.0.2", 403), ("::ffff:10.0.0.2", 403), ("fe80::1%eth0", 403), ("", 403), ("host", 403)],
)
def test_without_keys_only_this_machine_is_served(client: str, status: int) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    statuses: list[int] = []

    async def send(message: Any) -> None:
        statuses.append(message.get("status", 0))

    asyncio.run(LocalOnly(app)({"type": "http", "client": (client, 1)}, None, send))  # type: ignore[arg-type]
    assert statuses[0] == status

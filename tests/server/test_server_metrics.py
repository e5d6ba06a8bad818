"""What a server counts, as Prometheus' own parser reads it, and what one line of its log has."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import httpx
import pytest
from asgi import with_client
from prometheus_client.parser import text_string_to_metric_families

from adept_fast import GenerationError, GenerationEvent, Runtime
from adept_fast.server import exchange, logs
from adept_fast.server.answering import Load
from adept_fast.server.exchange import Exchange
from adept_fast.server.metrics import Metrics
from adept_fast.server.observation import observed
from adept_fast.server.service import Answer, Service

PROMPT = "human: What is the capital of France?\n\nadept:"
Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def values_of(text: str) -> Values:
    """The value of each series, by its name without the prefix and its labels."""
    return {
        (sample.name.removeprefix("adept_fast_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def read(client: httpx.AsyncClient) -> Values:
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    return values_of(response.text)


def test_answers_are_counted(demo: Runtime) -> None:
    async def work(client: httpx.AsyncClient, _service: Service) -> None:
        before = await read(client)
        body = {"prompt": [PROMPT, "Once"], "max_tokens": 5, "ignore_eos": True, "temperature": 0, "n": 2}
        usage = (await client.post("/v1/completions", json=body)).json()["usage"]
        after = await read(client)

        def added(name: str, **labels: str) -> float:
            key = name, tuple(sorted(labels.items()))
            return after[key] - before.get(key, 0.0)

        assert added("http_requests_total", endpoint="/v1/completions", status="200") == 1
        assert added("answers_total", finish_reason="length") == 4
        assert added("generated_tokens_total") == usage["completion_tokens"] == 20
        assert added("prompt_tokens_total") == 2 * usage["prompt_tokens"]
        for name in ("time_to_first_token_seconds", "queue_seconds", "answer_seconds"):
            assert added(f"{name}_count") == 4
        assert added("time_between_tokens_seconds_count") == 16
        # Waiting, then the first token, then the others.
        first, whole = added("time_to_first_token_seconds_sum"), added("answer_seconds_sum")
        assert 0 <= added("queue_seconds_sum") < first < whole
        assert first + added("time_between_tokens_seconds_sum") <= whole

    with_client(demo, work)


def test_the_token_that_ends_a_text_is_none_of_its_tokens(demo: Runtime) -> None:
    async def work(client: httpx.AsyncClient, _service: Service) -> None:
        body = {"prompt": PROMPT, "max_tokens": 50, "temperature": 0}
        answer = (await client.post("/v1/completions", json=body)).json()
        assert answer["choices"][0]["finish_reason"] == "stop"
        counted = await read(client)
        assert counted["generated_tokens_total", ()] == answer["usage"]["completion_tokens"]
        assert counted["time_between_tokens_seconds_count", ()] == answer["usage"]["completion_tokens"] - 1
        assert counted["answers_total", (("finish_reason", "eos"),)] == 1

    with_client(demo, work)


def test_tokens_from_the_cache_are_counted(demo: Runtime) -> None:
    async def work(client: httpx.AsyncClient, _service: Service) -> None:
        body = {"prompt": PROMPT, "max_tokens": 1}
        await client.post("/v1/completions", json=body)
        before = await read(client)
        usage = (await client.post("/v1/completions", json=body)).json()["usage"]
        name = "cached_prompt_tokens_total", ()
        cached = (await read(client))[name] - before[name]
        assert cached == usage["prompt_tokens_details"]["cached_tokens"] > 0

    with_client(demo, work)


def test_gauges_are_of_this_moment(demo: Runtime) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        idle = await read(client)
        assert (idle["answers_running", ()], idle["answers_waiting", ()], idle["ready", ()]) == (0, 0, 1)
        assert idle["slots", ()] == demo.max_batch_size
        body = {"prompts": ["Once upon a time"] * 6, "tokens_to_generate": 400}
        request = asyncio.create_task(client.put("/api", json=body))
        while (busy := await read(client))["answers_waiting", ()] == 0:
            assert not request.done(), request.result().text
        assert busy["answers_running", ()] + busy["answers_waiting", ()] <= 6
        request.cancel()
        await service.stop(0)
        assert (await read(client))["ready", ()] == 0

    with_client(demo, work)


def test_refusals_are_counted_and_paths_of_clients_are_no_labels(demo: Runtime) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        key = {"Authorization": "Bearer key"}
        for number in range(3):
            await client.get(f"/no/such/{number}", headers=key)
            await client.get(f"/v1/models/{number}", headers=key)
        await client.get("/v1/models")
        await client.post("/v1/completions", headers=key, content=b"a" * 2000)
        await service.stop(0)
        await client.put("/api", headers=key, json={"prompts": ["a"]})
        await client.get("/health")
        counted = values_of((await client.get("/metrics", headers=key)).text)
        reasons = ("key", "body", "stopping", "host", "queue_full")
        rejected = {reason: counted["requests_rejected_total", (("reason", reason),)] for reason in reasons}
        assert rejected == {"key": 1, "body": 1, "stopping": 1, "host": 0, "queue_full": 0}
        endpoints = {dict(labels)["endpoint"] for name, labels in counted if name == "http_requests_total"}
        assert endpoints == {"unknown", "/v1/models/{model_id}", "/api", "/health"}

    with_client(demo, work, api_keys=("key",), max_body_bytes=1000)


def test_names_have_units_and_explanations(demo: Runtime) -> None:
    async def work(client: httpx.AsyncClient, _service: Service) -> str:
        return (await client.get("/metrics")).text

    for family in text_string_to_metric_families(with_client(demo, work)):
        assert family.documentation
        if family.name.startswith("adept_fast_") and family.type == "histogram":
            assert family.name.endswith("_seconds")


class ScriptedAnswer:
    """An answer whose events, and whose end, are written beforehand."""

    def __init__(self, demo: Runtime, events: int, end: BaseException | None) -> None:
        handle = demo.engine.prepare(_request(demo))
        self._generation = handle.sequence.generation(0.0)
        self._events, self._end = events, end

    async def __aiter__(self) -> AsyncIterator[GenerationEvent]:
        for _ in range(self._events):
            yield GenerationEvent((1,), "a", None, None)
        if self._end is not None:
            raise self._end
        await asyncio.Event().wait()

    def generation(self) -> Any:
        return self._generation


def _request(demo: Runtime) -> Any:
    from adept_fast import Request, SamplingParams

    return Request([1, 2], SamplingParams(max_new_tokens=3))


def _observe(demo: Runtime, end: BaseException | None) -> tuple[Values, Exchange]:
    """The metrics after an answer of two events and this end; None for a client that leaves."""
    metrics = Metrics("demo", lambda: Load(1, 0, 0), lambda: True)
    seen = Exchange("id", "POST", metrics)

    async def consume() -> None:
        exchange.current.set(seen)
        async for _ in observed(cast(Answer, ScriptedAnswer(demo, 2, end))):
            pass

    async def main() -> None:
        task = asyncio.create_task(consume())
        if end is None:
            while math.isclose(
                values_of(metrics.text().decode())["time_between_tokens_seconds_count", ()], 0
            ):
                await asyncio.sleep(0)
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    return values_of(metrics.text().decode()), seen


@pytest.mark.parametrize(
    ("end", "reason"), [(None, "cancelled"), (GenerationError("a NaN"), "error"), (OSError(), "error")]
)
def test_answers_that_do_not_end_by_themselves(demo: Runtime, end: BaseException | None, reason: str) -> None:
    counted, seen = _observe(demo, end)
    assert counted["answers_total", (("finish_reason", reason),)] == 1
    assert seen.totals.fields()["finish_reason"] == reason


class Lines(logging.Handler):
    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture(params=["json", "text"])
def logged(request: pytest.FixtureRequest) -> Iterator[Lines]:
    """The lines of the log, in both formats."""
    root, level = logging.getLogger(), logging.getLogger("adept_fast.server").level
    handlers, root_level = list(root.handlers), root.level
    logs.configure_logs(request.param)
    (ours,) = root.handlers
    assert ours.formatter is not None
    lines = Lines(ours.formatter)
    lines.filters = ours.filters
    root.handlers = [*handlers, lines]
    yield lines
    root.handlers = handlers
    root.setLevel(root_level)
    logging.getLogger("adept_fast.server").setLevel(level)


def test_an_event_is_one_line_whatever_it_holds(logged: Lines) -> None:
    logs.log(
        "request", text='two\nlines "quoted" \x1b[31m', number=1.5, nothing=None, many=["a", 1], word="a-b"
    )
    logging.getLogger("other").warning("careful\n%s", "now")
    logging.getLogger("other").info("not of interest")
    first, second = logged.lines
    assert "\n" not in first + second
    assert "\x1b" not in first + second
    if first.startswith("{"):
        fields = json.loads(first)
        assert fields["text"] == 'two\nlines "quoted" \x1b[31m'
        assert (fields["event"], fields["level"], fields["number"], fields["many"]) == (
            "request", "info", 1.5, ["a", 1],
        )  # fmt: skip
        assert "nothing" not in fields
        assert json.loads(second)["logger"] == "other"
    else:
        assert ' info request text="two\\nlines' in first
        assert first.endswith('number=1.5 many=["a", 1] word=a-b')
        assert second.endswith("warning careful\\nnow logger=other")


def test_a_failure_is_logged_without_its_message(logged: Lines) -> None:
    try:
        raise ValueError("a prompt")
    except ValueError as error:
        logs.log_failure("request failed", error)
        logging.getLogger("uvicorn.error").error("it broke", exc_info=error)
    assert len(logged.lines) == 2
    for line in logged.lines:
        assert "ValueError" in line
        assert "a prompt" not in line
    assert "test_a_failure_is_logged" in logged.lines[0]


def test_cancelled_tasks_are_no_failures(logged: Lines) -> None:
    logging.getLogger("uvicorn.error").error("it broke", exc_info=asyncio.CancelledError())
    assert logged.lines == []

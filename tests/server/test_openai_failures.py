"""Requests that fail: before their first event with a status, after it with an event."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import APIError, OpenAI
from openai_calls import CHAT, COMPLETIONS, MESSAGES, error_of, post, scripted_app
from openai_server import alone, client, one_thread_a_call, server, started
from scripted_service import ScriptedService, step
from serving import RunningServer

from adept_fast import GenerationError, Runtime
from adept_fast.engine.scheduler import QueueFullError
from adept_fast.server.answering import ServiceStoppingError

__all__ = ["alone", "client", "one_thread_a_call", "server", "started"]

FULL = QueueFullError("the queue is full")
FULL.retry_after_seconds = 2.5
FAILURES: list[tuple[Any, int, str | None]] = [
    (FULL, 429, "queue_full"),
    (ServiceStoppingError("stopping"), 503, "stopping"),
    ([GenerationError("the logits hold a NaN")], 500, "invalid_logits"),
    ([RuntimeError("secret")], 500, None),
    ([step("", "timeout")], 504, "timeout"),
    ([step("", "interrupted")], 503, "stopping"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("script", "status", "code"), FAILURES, ids=lambda value: f"{value!s:.30}")
def test_a_failure_before_the_first_event_is_a_status(
    alone: Runtime, script: Any, status: int, code: str | None, stream: bool
) -> None:
    response = post(alone, COMPLETIONS, {"prompt": "a", "stream": stream}, script)
    assert response.status_code == status
    error = error_of(response)
    assert error["code"] == code
    assert "secret" not in response.text
    assert response.headers.get("Retry-After") == ("3" if status == 429 else None)


@pytest.mark.parametrize(("script", "status", "code"), FAILURES[2:], ids=lambda value: f"{value!s:.30}")
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_a_failure_after_the_first_event_ends_the_stream_with_an_error(
    alone: Runtime, path: str, script: list[Any], status: int, code: str | None
) -> None:
    body = {"stream": True, **({"prompt": "a"} if path == COMPLETIONS else {"messages": MESSAGES})}
    response = post(alone, path, body, [step(" b"), *script])
    assert response.status_code == 200
    events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert "error" not in events[0]
    assert "[DONE]" not in events
    assert json.loads(events[-1])["error"]["code"] == code
    assert "secret" not in response.text


def test_openais_client_raises_the_error_of_a_stream(
    server: RunningServer, client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted = ScriptedService(server.service.runtime, [step(" b"), GenerationError("the logits hold a NaN")])
    monkeypatch.setattr(server.service, "submit", scripted.submit)
    stream = client.completions.create(model="demo", prompt="a", stream=True)
    assert next(stream).choices[0].text == " b"
    with pytest.raises(APIError, match="the logits hold a NaN"):
        next(stream)


@pytest.mark.parametrize("stream", [False, True])
def test_one_failed_choice_ends_the_others(alone: Runtime, stream: bool) -> None:
    script = [step(" b"), GenerationError("a NaN")]
    response = post(alone, COMPLETIONS, {"prompt": "a", "n": 3, "stream": stream}, script)
    assert response.status_code == (200 if stream else 500)
    service, _ = scripted_app(alone)
    assert [answer.is_cancelled for answer in service.answers] == [True] * 3

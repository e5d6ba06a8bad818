"""Errors of OpenAI's routes: their form, their status, and the parameter that they name."""

from __future__ import annotations

import asyncio
import functools
import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import APIError, OpenAI
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params
from openai_server import SETTINGS, alone, client, one_thread_a_call, server, started
from scripted_service import ScriptedService, step
from serving import RunningServer, app_of, in_process

from adept_fast import GenerationError, Runtime
from adept_fast.engine.scheduler import QueueFullError
from adept_fast.server.openai.chat_request import ChatRequest
from adept_fast.server.openai.completion_request import CompletionRequest
from adept_fast.server.service import ServiceStoppingError

__all__ = ["alone", "client", "one_thread_a_call", "server", "started"]

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "a"}]
ANSWER = (step(" b", "length"),)
JSON = {"Content-Type": "application/json"}


def post(runtime: Runtime, path: str, body: Any, script: Any = ANSWER, **headers: str) -> httpx.Response:
    service, app = scripted_app(runtime)
    service.script = script

    async def send() -> httpx.Response:
        async with in_process(app) as http:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            return await http.post(path, content=content, headers={**JSON, **headers})

    return asyncio.run(send())


@functools.lru_cache
def scripted_app(runtime: Runtime) -> tuple[ScriptedService, FastAPI]:
    service = ScriptedService(runtime)
    return service, app_of(service, SETTINGS)


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of a response that has OpenAI's form."""
    body = response.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert "\n" not in error["message"]
    return error


WRONG_IN_BOTH: list[tuple[dict[str, Any], str]] = [
    ({"n": 0}, "n"),
    ({"n": 5}, "n"),
    ({"n": 1.5}, "n"),
    ({"n": True}, "n"),
    ({"n": "1"}, "n"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": 1e-30}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -1}, "top_k"),
    ({"min_p": 1}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"frequency_penalty": 2.5}, "frequency_penalty"),
    ({"presence_penalty": -2.5}, "presence_penalty"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"99999999": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {"1": "1"}}, "logit_bias"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 0.5}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", ""]}, "stop"),
    ({"stop": ["a", "b", "c"]}, "stop"),
    ({"stop": "nine char"}, "stop"),
    ({"stop": ["a", 1]}, "stop[1]"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"stop_token_ids": ["a"]}, "stop_token_ids[0]"),
    ({"stream": "yes"}, "stream"),
    ({"stream": 1}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"stream": True, "stream_options": {"other": True}}, "stream_options.other"),
    ({"stream": True, "stream_options": []}, "stream_options"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 2**31}, "max_tokens"),
    ({"max_tokens": 10**400}, "max_tokens"),
    ({"user": 1}, "user"),
    ({"ignore_eos": "no"}, "ignore_eos"),
    ({"add_bos": 1}, "add_bos"),
    ({"nonsense": 1}, "nonsense"),
    ({"Temperature": 1}, "Temperature"),
    ({"model": 1}, "model"),
]
WRONG_IN_COMPLETIONS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": 1}, "prompt"),
    ({"prompt": {}}, "prompt"),
    ({"prompt": ["a", 1]}, "prompt[1]"),
    ({"prompt": [1, "a"]}, "prompt[1]"),
    ({"prompt": [1, True]}, "prompt[1]"),
    ({"prompt": [1.5]}, "prompt[0]"),
    ({"prompt": [[1], ["a"]]}, "prompt[1][0]"),
    ({"prompt": [[1], 2]}, "prompt[1]"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [4096]}, "prompt"),
    ({"prompt": [[1], [10**400]]}, "prompt[1]"),
    ({"prompt": ["a"] * 4}, "prompt"),
    ({"prompt": [340] * 257}, "prompt"),
    ({"prompt": ["a", "a " * 2000]}, "prompt[1]"),
    ({"prompt": ["a", "a" * 100_000]}, "prompt[1]"),
    ({"suffix": "b"}, "suffix"),
    ({"best_of": 2}, "best_of"),
    ({"best_of": 0}, "best_of"),
    ({"logprobs": -1}, "logprobs"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"echo": 1}, "echo"),
    ({"messages": MESSAGES}, "messages"),
]
WRONG_IN_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "a"}, "messages"),
    ({"messages": ["a"]}, "messages[0]"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"content": "a"}]}, "messages[0].role"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
    ({"messages": [{"role": "system", "content": "a"}]}, "messages"),  # the format has no such role
    ({"messages": [{"role": "developer", "content": "a"}]}, "messages"),
    ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
    (
        {"messages": [*MESSAGES, {"role": "user", "content": [{"type": "file"}]}]},
        "messages[1].content[0].type",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": ["a"]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "assistant", "content": "a", "tool_calls": [1]}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "user", "content": "a", "<text>": 1}]}, "messages[0].<text>"),
    ({"messages": [{"role": "user", "content": "a " * 2000}]}, "messages"),
    ({"messages": [{"role": "user", "content": "a" * 20_000}] * 5}, "messages"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
    ({"logprobs": 1}, "logprobs"),
    ({"top_logprobs": 1}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"functions": [{}]}, "functions"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"store": True}, "store"),
    ({"store": 0}, "store"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"prompt": "a"}, "prompt"),
]


@pytest.mark.parametrize(("more", "param"), WRONG_IN_BOTH + WRONG_IN_COMPLETIONS, ids=lambda v: f"{v!s:.40}")
def test_completions_name_the_wrong_parameter(alone: Runtime, more: dict[str, Any], param: str) -> None:
    response = post(alone, COMPLETIONS, {"model": "demo", "prompt": "a", **more})
    assert response.status_code == 400
    error = error_of(response)
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert param in error["message"]


@pytest.mark.parametrize(("more", "param"), WRONG_IN_BOTH + WRONG_IN_CHAT, ids=lambda v: f"{v!s:.40}")
def test_chat_names_the_wrong_parameter(alone: Runtime, more: dict[str, Any], param: str) -> None:
    response = post(alone, CHAT, {"model": "demo", "messages": MESSAGES, **more})
    assert response.status_code == 400
    error = error_of(response)
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert param in error["message"]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_another_model_is_not_found(alone: Runtime, path: str) -> None:
    body = {"model": "gpt", "prompt": "a"} if path == COMPLETIONS else {"model": "gpt", "messages": MESSAGES}
    response = post(alone, path, body)
    assert response.status_code == 404
    assert error_of(response)["code"] == "model_not_found"


def test_a_prompt_longer_than_the_context_has_a_code_of_its_own(alone: Runtime) -> None:
    for path, body in (
        (COMPLETIONS, {"prompt": [340] * 257}),
        (CHAT, {"messages": [{"role": "user", "content": "a " * 2000}]}),
    ):
        error = error_of(post(alone, path, body))
        assert error["code"] == "context_length_exceeded"
        assert "256" in error["message"]
    assert post(alone, COMPLETIONS, {"prompt": [340] * 256}).status_code == 200


NO_JSON = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"a"',
    b"\xff",
    b'{"prompt": "\xff"}',
    b'{"prompt": "\\ud800"}',
    b"\xef\xbb\xbf{}",
    b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
    b'{"a":' * 100_000,
    b'{"a":' * 10_000,
    b'{"prompt": [' + b"[]," * 100_000 + b"[]]}",
    b"{" + b",".join(b'"k%d": 1' % number for number in range(1000)) + b"}",
    b"[" * 100_000 + b"]" * 100_000,
]


@pytest.mark.parametrize("body", NO_JSON, ids=lambda body: f"{body[:20]!r}")
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, "/tokenize", "/detokenize"])
def test_a_body_that_is_no_json_object_is_refused(alone: Runtime, path: str, body: bytes) -> None:
    response = post(alone, path, body)
    assert response.status_code == 400
    assert error_of(response)["type"] == "invalid_request_error"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize(
    "name", ["temperature", "top_p", "min_p", "presence_penalty", "repetition_penalty", "max_tokens", "seed"]
)
def test_numbers_that_are_none_are_refused(alone: Runtime, name: str, number: str) -> None:
    response = post(alone, COMPLETIONS, f'{{"prompt": "a", "{name}": {number}}}'.encode())
    assert response.status_code == 400
    assert error_of(response)["param"] == name


def test_other_content_types_are_refused(alone: Runtime) -> None:
    response = post(alone, COMPLETIONS, {"prompt": "a"}, **{"Content-Type": "text/plain"})
    assert response.status_code == 415
    assert error_of(response)["type"] == "invalid_request_error"


def test_a_large_body_is_refused(alone: Runtime) -> None:
    response = post(alone, COMPLETIONS, {"prompt": "a" * SETTINGS.max_body_bytes})
    assert response.status_code == 413
    error_of(response)


def test_unknown_paths_and_methods_have_the_same_form(alone: Runtime) -> None:
    async def send() -> list[httpx.Response]:
        async with in_process(app_of(ScriptedService(alone), SETTINGS)) as http:
            return [
                await http.get("/v1/nothing"),
                await http.get(COMPLETIONS),
                await http.get("/v1/models/x"),
            ]

    absent, method, model = asyncio.run(send())
    assert [absent.status_code, method.status_code, model.status_code] == [404, 405, 404]
    assert method.headers["Allow"] == "POST"
    assert error_of(model)["code"] == "model_not_found"
    for response in (absent, method):
        error_of(response)


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


@pytest.mark.parametrize(
    ("model", "params"),
    [
        (CompletionRequest, completion_params.CompletionCreateParamsBase),
        (ChatRequest, chat_params.CompletionCreateParamsBase),
    ],
)
def test_every_parameter_of_openais_client_is_known(model: Any, params: Any) -> None:
    """Known, or refused by name as one that is not supported."""
    known = model.model_fields.keys() | model.unsupported.keys()
    assert params.__annotations__.keys() | {"stream"} <= known


JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = sorted(
    {*ChatRequest.model_fields, *ChatRequest.unsupported, *CompletionRequest.model_fields, "role", "content"}
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from([COMPLETIONS, CHAT, "/tokenize", "/detokenize"]),
    body=st.dictionaries(st.sampled_from(NAMES), JSON_VALUES, max_size=4),
    has_prompt=st.booleans(),
)
def test_no_body_is_an_error_within_the_server(
    alone: Runtime, path: str, body: dict[str, Any], has_prompt: bool
) -> None:
    needed: dict[str, Any] = {
        COMPLETIONS: {"prompt": "a"},
        CHAT: {"messages": MESSAGES},
        "/tokenize": {"prompt": "a"},
        "/detokenize": {"tokens": [340]},
    }[path]
    response = post(alone, path, {**(needed if has_prompt else {}), **body})
    assert response.status_code in (200, 400, 404)
    if response.status_code != 200:
        error_of(response)

"""Errors of OpenAI's routes: their form, their status, and the parameter that they name."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params
from openai_calls import CHAT, COMPLETIONS, MESSAGES, error_of, post
from openai_server import SETTINGS, alone, one_thread_a_call
from scripted_service import ScriptedService
from serving import app_of, in_process
from wrong_bodies import WRONG_IN_BOTH, WRONG_IN_CHAT, WRONG_IN_COMPLETIONS

from adept_fast import Runtime
from adept_fast.server.openai.chat_request import ChatRequest
from adept_fast.server.openai.completion_request import CompletionRequest

__all__ = ["alone", "one_thread_a_call"]


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


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"temperature": 3}, "temperature is 3; expected at most 2"),
        ({"top_p": 0.0}, "top_p is 0.0; expected more than 0"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; expected at least 1e-10"),
        ({"max_tokens": 2**31}, "max_tokens is 2147483648; expected at most 2147483647"),
        ({"n": 10**400}, "n is an integer of 1329 bits; expected at most 4"),
        ({"n": "{n}"}, "n is '{n}'; expected an integer"),
        ({"echo": "{0}"}, "echo is '{0}'; expected true or false"),
        ({"tools": "{n}"}, "tools is no parameter of this path"),
        ({"{n}": 1}, "{n} is no parameter of this path"),
        ({"suffix": "{n}"}, "suffix is '{n}', which this server does not support; expected null or \"\""),
        ({"prompt": []}, "prompt has 0 entries; expected at least 1"),
        (
            {"stop_token_ids": [1] * 129},
            "stop_token_ids has 129 entries; expected at most 128",
        ),
    ],
)
def test_a_message_has_the_parameter_its_value_and_what_is_allowed(
    alone: Runtime, more: dict[str, Any], message: str
) -> None:
    assert error_of(post(alone, COMPLETIONS, {"prompt": "a", **more}))["message"] == message


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

"""The OpenAPI document of OpenAI's routes: what it allows is accepted, what it forbids is refused."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest
from openai_calls import CHAT, COMPLETIONS, MESSAGES, post
from openai_server import SETTINGS, alone, one_thread_a_call
from scripted_service import ScriptedService
from serving import app_of
from wrong_bodies import WRONG_IN_BOTH, WRONG_IN_CHAT, WRONG_IN_COMPLETIONS

from adept_fast import Runtime

__all__ = ["alone", "one_thread_a_call"]


@pytest.fixture(scope="module")
def document(alone: Runtime) -> dict[str, Any]:
    return app_of(ScriptedService(alone), SETTINGS).openapi()


def body_schema(document: dict[str, Any], path: str) -> Any:
    (method,) = document["paths"][path].values()
    return jsonschema_rs.validator_for(method["requestBody"]["content"]["application/json"]["schema"])


ACCEPTED: list[tuple[str, dict[str, Any]]] = [
    (COMPLETIONS, {"prompt": "a"}),
    (COMPLETIONS, {"prompt": ["a", ""], "model": "demo", "n": 4, "best_of": 4, "logprobs": 20, "echo": True}),
    (COMPLETIONS, {"prompt": [1, 4095], "max_tokens": 0, "suffix": None, "stop": None}),
    (COMPLETIONS, {"prompt": [[1], []], "logit_bias": {"5": -100, "6": 1.5}, "seed": -(2**63)}),
    (COMPLETIONS, {"prompt": "a", "temperature": 0, "top_p": 1, "top_k": 3, "min_p": 0.5, "user": "b"}),
    (COMPLETIONS, {"prompt": "a", "frequency_penalty": -2, "presence_penalty": 2, "repetition_penalty": 2}),
    (COMPLETIONS, {"prompt": "a", "stream": True, "stream_options": {"include_usage": True}}),
    (COMPLETIONS, {"prompt": "a", "stop": ["a", "12345678"], "stop_token_ids": [5], "ignore_eos": True}),
    (COMPLETIONS, {"prompt": "a", "n": 1.0, "max_tokens": 3.0}),
    (COMPLETIONS, {"prompt": [[1.0, 2], [3]], "stop_token_ids": [5.0]}),
    ("/detokenize", {"tokens": [1.0, 2]}),
    (CHAT, {"messages": MESSAGES}),
    (CHAT, {"messages": [*MESSAGES, {"role": "assistant", "content": "b", "refusal": None, "name": "c"}]}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "tools": []}),
    (CHAT, {"messages": MESSAGES, "logprobs": True, "top_logprobs": 20, "max_completion_tokens": 5}),
    (CHAT, {"messages": MESSAGES, "response_format": {"type": "text"}, "modalities": ["text"]}),
    (CHAT, {"messages": MESSAGES, "stream": True, "n": 4, "store": False}),
    ("/tokenize", {"prompt": "a", "add_bos": False}),
    ("/tokenize", {"messages": MESSAGES, "add_generation_prompt": False}),
    ("/detokenize", {"tokens": [1, 2], "model": "demo"}),
]


@pytest.mark.parametrize(("path", "body"), ACCEPTED, ids=lambda value: f"{value!s:.60}")
def test_bodies_and_responses_are_as_documented(
    alone: Runtime, document: dict[str, Any], path: str, body: dict[str, Any]
) -> None:
    body_schema(document, path).validate(body)
    response = post(alone, path, body)
    assert response.status_code == 200
    documented = document["paths"][path]["post"]["responses"]["200"]["content"]
    media_type = response.headers["content-type"].partition(";")[0]
    if media_type == "application/json":
        schema = documented[media_type]["schema"]
        resolved = {**schema, "components": document["components"]}
        jsonschema_rs.validator_for(resolved).validate(response.json())
        return
    events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    _, data = documented["text/event-stream"]["schema"]["properties"]["data"]["anyOf"]
    schema = data["contentSchema"]["anyOf"][0]  # the other one is an error's
    for event in events[:-1]:
        jsonschema_rs.validator_for(schema).validate(json.loads(event))


WRONG = [
    *((COMPLETIONS, {"prompt": "a", **more}) for more, _ in WRONG_IN_BOTH + WRONG_IN_COMPLETIONS),
    *((CHAT, {"messages": MESSAGES, **more}) for more, _ in WRONG_IN_BOTH + WRONG_IN_CHAT),
]


def test_most_wrong_values_are_wrong_by_the_document(document: dict[str, Any]) -> None:
    """The others depend on several parameters, on the tokens of a text, or on the chat format."""
    unseen = [body for path, body in WRONG if body_schema(document, path).is_valid(body)]
    assert len(WRONG) > 120
    others = [
        {"stream_options": {"include_usage": True}},
        {"prompt": [340] * 257},
        {"prompt": ["a", "a " * 2000]},
        {"best_of": 2},
        {"max_tokens": 3, "max_completion_tokens": 4},
        {"top_logprobs": 1},
        {"logit_bias": {"99999999": 1}},
        {"seed": 2**63},  # its bound is a float in the document
    ]
    for body in unseen:
        has_odd_role = any(m["role"] in ("system", "developer") for m in body.get("messages", []))
        is_long = len(str(body)) > 3000
        assert has_odd_role or is_long or any(other.items() <= body.items() for other in others), body


def test_every_error_is_documented_in_openais_form(document: dict[str, Any]) -> None:
    for path in (COMPLETIONS, CHAT):
        responses = document["paths"][path]["post"]["responses"]
        assert {"400", "404", "413", "415", "429", "500", "503", "504"} <= responses.keys()
        for status, response in responses.items():
            if status != "200":
                schema = response["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorBody"}
        assert "Retry-After" in responses["429"]["headers"]
    for methods in document["paths"].values():
        for operation in methods.values():
            assert "422" not in operation["responses"]


def test_parameters_are_described(document: dict[str, Any]) -> None:
    for path in (COMPLETIONS, CHAT, "/tokenize", "/detokenize"):
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        for name, parameter in schema["properties"].items():
            assert "description" in parameter or name in ("messages", "tokens"), name
            assert "ge" not in parameter

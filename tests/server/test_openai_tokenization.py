"""``/tokenize`` and ``/detokenize``."""

from __future__ import annotations

from typing import Any

import pytest
from openai_calls import MESSAGES, error_of, post
from openai_server import alone, one_thread_a_call

from adept_fast import Runtime

__all__ = ["alone", "one_thread_a_call"]

TEXTS = ["", "Once upon a time", "5 € – 😀\n\tx", "a\0b"]


@pytest.mark.parametrize("add_bos", [None, True, False])
@pytest.mark.parametrize("text", TEXTS)
def test_the_ids_of_a_text_are_the_tokenizers(alone: Runtime, text: str, add_bos: bool | None) -> None:
    found = post(alone, "/tokenize", {"prompt": text, "add_bos": add_bos}).json()
    ids = alone.tokenizer.encode(text, add_bos=add_bos)
    assert found == {"tokens": ids, "count": len(ids), "max_model_len": alone.max_seq_len}
    assert post(alone, "/detokenize", {"tokens": ids}).json() == {"prompt": alone.tokenizer.decode(ids)}


@pytest.mark.parametrize("answered", [None, True, False])
def test_the_ids_of_a_conversation_are_those_of_its_prompt(alone: Runtime, answered: bool | None) -> None:
    body = {"messages": MESSAGES, "add_generation_prompt": answered}
    ids = alone.tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=answered is not False)
    assert post(alone, "/tokenize", body).json()["tokens"] == ids


def test_more_tokens_than_the_context_are_counted(alone: Runtime) -> None:
    assert post(alone, "/tokenize", {"prompt": "a" * 1000}).json()["count"] > alone.max_seq_len


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt"),
        ("/tokenize", {"prompt": 1}, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"prompt": "a" * 10_000}, "prompt"),
        ("/tokenize", {"messages": [{"role": "system", "content": "a"}]}, "messages"),
        ("/tokenize", {"prompt": "a", "temperature": 1}, "temperature"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [1, "a"]}, "tokens[1]"),
        ("/detokenize", {"tokens": [4096]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [340] * 257}, "tokens"),
    ],
    ids=lambda value: f"{value!s:.40}",
)
def test_errors_name_the_parameter(alone: Runtime, path: str, body: dict[str, Any], param: str) -> None:
    response = post(alone, path, body)
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == param
    assert param in error["message"]


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
def test_another_model_is_not_found(alone: Runtime, path: str) -> None:
    response = post(
        alone,
        path,
        {"model": "gpt", "prompt": "a"} if path == "/tokenize" else {"model": "gpt", "tokens": [1]},
    )
    assert response.status_code == 404

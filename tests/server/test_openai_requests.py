"""What OpenAI's routes request of the engine, and the texts of single tokens."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from openai_server import alone, one_thread_a_call
from scripted_service import ScriptedService, step
from serving import app_of, in_process

from adept_fast import Request, Runtime
from adept_fast.chat import STOP, chat_prompt
from adept_fast.chat.chat_template import ChatTemplate
from adept_fast.server.openai.token_text import TextOffsets, token_bytes, token_text
from adept_fast.server.settings import Settings

__all__ = ["alone", "one_thread_a_call"]

MESSAGES = [{"role": "user", "content": "a"}]


def requests_of(runtime: Runtime, path: str, body: Any, settings: Settings, key: str = "") -> list[Request]:
    """What the route of a path submits."""
    service = ScriptedService(runtime, [step(" b", "length")])

    async def send() -> int:
        async with in_process(app_of(service, settings)) as http:
            headers = {"Authorization": f"Bearer {key}"}
            return (await http.post(path, json=body, headers=headers)).status_code

    assert asyncio.run(send()) == 200
    return [answer.request for answer in service.answers]


def test_the_stop_strings_of_a_chat_format_are_added(alone: Runtime) -> None:
    body = {"messages": MESSAGES, "stop": ["b", "c"]}
    (request,) = requests_of(alone, "/v1/chat/completions", body, Settings(model_name="demo"))
    assert request.params.stop == ("b", "c", STOP)
    assert request.prompt_ids == alone.tokenizer.encode(chat_prompt("a"))
    assert request.params.max_new_tokens is None
    body = {"prompt": "a", "stop": "b"}
    (request,) = requests_of(alone, "/v1/completions", body, Settings(model_name="demo"))
    assert request.params.stop == ("b",)


def test_messages_reach_a_template_by_its_own_names(alone: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "{% for m in messages %}[{{ m.role }} {{ m.name }} {{ m.content }}]{% endfor %}"
    template = ChatTemplate(source + "{% if add_generation_prompt %}>{% endif %}", "a test")
    monkeypatch.setattr(alone.tokenizer, "chat_format", template)
    parts = [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]
    messages = [
        {"role": "developer", "content": "a"},
        {"role": "system", "content": parts},
        {"role": "user", "content": "d", "name": "e"},
        {"role": "assistant", "content": "f", "refusal": None, "tool_calls": []},
    ]
    body = {"messages": messages}
    (request,) = requests_of(alone, "/v1/chat/completions", body, Settings(model_name="demo"))
    expected = "[system  a][system  bc][user e d][assistant  f]>"
    assert alone.tokenizer.decode(request.prompt_ids) == expected
    assert request.params.stop == ()


def test_requests_have_a_deadline_if_the_server_sets_one(alone: Runtime) -> None:
    before = time.monotonic()
    for path, body in (
        ("/v1/completions", {"prompt": ["a", "b"], "n": 2}),
        ("/v1/chat/completions", {"messages": MESSAGES, "n": 2}),
    ):
        limited = requests_of(alone, path, body, Settings(model_name="demo", request_seconds=100))
        for request in limited:
            assert request.deadline is not None
            assert before + 100 <= request.deadline <= time.monotonic() + 100
        endless = requests_of(alone, path, body, Settings(model_name="demo", request_seconds=None))
        assert {request.deadline for request in endless} == {None}


def test_keys_share_no_prefixes(alone: Runtime) -> None:
    settings = Settings(model_name="demo", api_keys=("first-key", "second-key"))
    scopes = [
        {request.cache_scope for request in requests_of(alone, "/v1/completions", body, settings, key)}
        for body in ({"prompt": "a", "n": 2},)
        for key in ("first-key", "second-key", "first-key")
    ]
    assert [len(scope) for scope in scopes] == [1, 1, 1]
    assert scopes[0] == scopes[2] != scopes[1]


def byte_id(runtime: Runtime, byte: int) -> int:
    found = runtime.tokenizer.vocabulary.find(f"<0x{byte:02X}>")
    assert found is not None
    return found


def test_bytes_of_a_character_share_an_offset(alone: Runtime) -> None:
    euro = [byte_id(alone, byte) for byte in "€".encode()]
    word = alone.tokenizer.encode("a b")[-1]
    ids = [word, *euro, word, *euro[:2], word, euro[0], *euro, word]
    text = alone.tokenizer.decode(ids)
    assert text == "b€ b\ufffd\ufffd b\ufffd€ b"
    assert TextOffsets(alone.tokenizer).extend(ids) == [0, 1, 1, 1, 2, 4, 4, 6, 8, 9, 9, 9, 10]


def test_tokens_have_their_text_or_their_bytes(alone: Runtime) -> None:
    tokenizer = alone.tokenizer
    shown = [token_text(token_bytes(tokenizer, i)) for i in tokenizer.encode("a €", add_bos=True)]
    assert shown[0] == tokenizer.piece(tokenizer.bos_id or 0)
    assert shown[-3:] == ["bytes:\\xe2", "bytes:\\x82", "bytes:\\xac"]
    for token_id in range(tokenizer.vocab_size):
        raw = token_bytes(tokenizer, token_id)
        assert raw
        if not tokenizer.is_control(token_id):
            word = [tokenizer.encode("a")[-1], token_id]
            assert tokenizer.decode(word) == "a" + raw.decode("utf-8", "replace")


@pytest.mark.parametrize("logprobs", [None, 0, 3])
def test_echo_requests_logprobs_of_the_prompt(alone: Runtime, logprobs: int | None) -> None:
    for echo in (False, True):
        body = {"prompt": "a", "echo": echo, "logprobs": logprobs}
        (request,) = requests_of(alone, "/v1/completions", body, Settings(model_name="demo"))
        assert request.params.logprobs == logprobs
        assert request.prompt_logprobs == (logprobs if echo else None)

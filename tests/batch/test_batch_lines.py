"""Lines of a batch: each gets the answer that it gets alone, and a wrong one an error in its place."""

from __future__ import annotations

import json
import random
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from asgi import with_client
from batch_inputs import CHAT, COMPLETIONS, QUESTION, answered, opened, request, write_lines
from openai.types import Completion
from openai.types.chat import ChatCompletion

from adept_fast import Runtime
from adept_fast.chat import STOP
from adept_fast.server.batch.line import MAX_BYTES
from adept_fast.server.batch.line_index import LineIndex
from adept_fast.server.batch.origin import BatchOrigin

PLAIN: list[dict[str, Any]] = [
    {"prompt": QUESTION, "custom_id": "first"},
    {"prompt": "Once upon a time", "temperature": 1.0, "max_new_tokens": 30},
    {"prompt": "Once upon a time", "temperature": 1.0, "max_new_tokens": 30, "custom_id": "drawn"},
    {"prompt": "Once upon", "temperature": 1.3, "seed": 5, "top_k": 40, "top_p": 0.9, "min_p": 0.01},
    {"prompt": [300, 301], "max_new_tokens": 3, "logprobs": 2, "ignore_eos": True},
    {"prompt": "One, two, three, one, two,", "prompt_lookup": 4, "max_new_tokens": 12},
    {"prompt": "Once", "logit_bias": {"290": -2.5, "9": 4}, "repetition_penalty": 1.2, "max_new_tokens": 9},
    {"prompt": "Once", "stop": [" time"], "frequency_penalty": 0.5, "presence_penalty": -0.5},
    {"prompt": "", "add_bos": True, "max_new_tokens": 0, "stop_token_ids": [5]},
    {"prompt": "Héllo 日本 \U0001f600", "max_new_tokens": 5, "custom_id": "日本 \u2028"},
]
USER = [{"role": "user", "content": "What is the capital of Peru?"}]
BODIES: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"model": "demo", "messages": USER, "seed": 3, "logprobs": True, "top_logprobs": 2, "n": 2}),
    (CHAT, {"messages": USER, "temperature": 0, "max_completion_tokens": 3, "user": "someone"}),
    (COMPLETIONS, {"prompt": ["Once", "Once upon"], "seed": 1, "n": 2, "max_tokens": 6, "logprobs": 1}),
    (COMPLETIONS, {"prompt": [300, 301], "echo": True, "logprobs": 0, "max_tokens": 0}),
    (COMPLETIONS, {"prompt": "Once", "temperature": 0, "stop": " time", "logit_bias": {"9": 3}}),
]


def test_plain_lines_are_those_of_generate(demo: Runtime, tmp_path: Path) -> None:
    found = answered(demo, tmp_path, PLAIN, seed=7)
    with opened(tmp_path, seed=7) as job:
        origin = job.origin
    for number, (line, answer) in enumerate(zip(PLAIN, found, strict=True), 1):
        params = {name: value for name, value in line.items() if name not in ("prompt", "custom_id")}
        params.setdefault("seed", origin.seed_of(number, line.get("custom_id")))
        if "logit_bias" in params:
            params["logit_bias"] = {int(token): bias for token, bias in params["logit_bias"].items()}
        (alone,) = demo.generate([line["prompt"]], **params)
        expected = {
            "id": f"batch_req_{origin.fingerprint}_{number}",
            "custom_id": line.get("custom_id"),
            "text": alone.text,
            "token_ids": alone.token_ids,
            "finish_reason": alone.finish_reason,
            "prompt_tokens": alone.timings.prompt_tokens,
            "completion_tokens": len(alone.token_ids),
            "error": None,
        }
        if alone.logprobs is not None:
            expected["logprobs"] = [
                {"token_id": e.token_id, "logprob": e.logprob, "top": [list(pair) for pair in e.top]}
                for e in alone.logprobs
            ]
        assert answer == expected
    assert found[0]["text"] == " The capital of Peru is Lima."
    assert found[1]["text"] != found[2]["text"]


def test_requests_are_answered_as_by_the_server(demo: Runtime, tmp_path: Path) -> None:
    lines = [request(f"id {number}", body, url) for number, (url, body) in enumerate(BODIES)]
    found = answered(demo, tmp_path, lines)

    async def ask(http: Any, _service: Any) -> list[Any]:
        return [(await http.post(url, json=body)).json() for url, body in BODIES]

    for line, answer, (url, asked), served in zip(lines, found, BODIES, with_client(demo, ask), strict=True):
        assert (answer["custom_id"], answer["error"]) == (line["custom_id"], None)
        assert answer["response"]["status_code"] == 200
        body = answer["response"]["body"]
        assert body.pop("id") != served.pop("id")
        del body["created"], served["created"], served["usage"]["prompt_tokens_details"]
        assert body == served
        if not asked.get("echo"):  # OpenAI's own API has no null for a first token either
            (ChatCompletion if url == CHAT else Completion).model_validate({**body, "id": "", "created": 0})


def test_a_request_without_a_seed_draws_one_of_its_own(demo: Runtime, tmp_path: Path) -> None:
    body = {"prompt": "Once upon a time", "max_tokens": 12}
    lines = [request("a", body), request("b", body), request("c", {**body, "seed": 1})]
    first = texts(answered(demo, tmp_path, lines))
    assert len({*first}) == 3
    assert first[2] == demo.generate(body["prompt"], max_new_tokens=12, temperature=1, seed=1).text
    for seed, same in ((0, True), (1, False)):
        (tmp_path / "out.jsonl").unlink()
        again = texts(answered(demo, tmp_path, lines[::-1], seed))[::-1]
        assert [again[0] == first[0], again[1] == first[1], again[2] == first[2]] == [same, same, True]


def texts(answers: Sequence[dict[str, Any]]) -> list[str]:
    return [answer["response"]["body"]["choices"][0]["text"] for answer in answers]


def test_seeds_differ_and_fit() -> None:
    origin = BatchOrigin("0" * 16, 3, 0, "demo")
    seeds = [origin.seed_of(number, None) for number in range(100)]
    seeds += [origin.seed_of(1, f"{number}") for number in range(100)]
    assert len({*seeds}) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**61


TAKEN = ("duplicate_custom_id",)
OK_BODY = {"prompt": "Once", "max_tokens": 1}
# The line, the parameter and the code of its error, and the beginning of the sentence.
WRONG: list[tuple[Any, str | None, str | None, str]] = [
    (b"nonsense", None, "invalid_json", "line 2: not valid JSON"),
    (b"[1]", None, "invalid_json", "line 2: holds a list; expected a JSON object"),
    (b'{"prompt": NaN}', None, "invalid_json", "line 2: prompt is NaN; expected a finite number"),
    (b'{"prompt": 1e999}', None, "invalid_json", "line 2: prompt is 1e999; expected a finite number"),
    (b'{"prompt": "a", "prompt": "b"}', None, "invalid_json", "line 2: has the key 'prompt' twice"),
    (b'{"prompt": "\xff"}', None, "invalid_json", "line 2: not UTF-8 text"),
    (b'{"prompt": "\\ud800"}', None, "invalid_json", "line 2 has half of a surrogate pair"),
    (b'{"a":' * 90 + b"1" + b"}" * 90, None, "invalid_json", "line 2: is nested too deeply"),
    (b"[" * 60_000, None, "invalid_json", "line 2 has 60000 opening brackets and braces; expected at most"),
    (b"[" * 45_000, None, "invalid_json", "line 2: is nested too deeply"),
    (b" " * MAX_BYTES + b"{", None, "line_too_long", f"line 2 has {MAX_BYTES + 1} bytes; expected at most"),
    ({}, "prompt", "missing_required_parameter", "prompt is missing"),
    ({"prompt": None}, "prompt", "missing_required_parameter", "prompt is missing"),
    ({"prompt": 5}, "prompt", "invalid_value", "prompt is 5; expected text or token ids"),
    ({"prompt": {}}, "prompt", "invalid_value", "prompt is {}; expected text or token ids"),
    ({"prompt": [1, "a"]}, "prompt", "invalid_value", "prompt is [1, 'a']; expected text or token ids"),
    ({"prompt": [10**9]}, "prompt", "invalid_value", "prompt has the token id 1000000000; expected 0 to"),
    ({"prompt": [5] * 3000}, "prompt", "context_length_exceeded", "prompt has 3000 tokens; expected at most"),
    ({"prompt": "a b " * 3000}, "prompt", "context_length_exceeded", "prompt has"),
    ({"prompt": "a" * 10**6}, "prompt", "context_length_exceeded", "prompt has 1000000 characters; expected"),
    ({"prompt": "a", "custom_id": 5}, "custom_id", "invalid_value", "custom_id is 5; expected text"),
    (
        {"prompt": "a", "custom_id": ""},
        "custom_id",
        "invalid_value",
        "custom_id has 0 characters; expected 1",
    ),
    (
        {"prompt": "a", "custom_id": "taken"},
        "custom_id",
        "duplicate_custom_id",
        "custom_id is that of line 1",
    ),
    (
        {"prompt": "a", "color": 1},
        "color",
        "unknown_parameter",
        "color is no field of a line; expected custo",
    ),
    ({"prompt": "a", "temperature": -1}, "temperature", "invalid_value", "temperature is -1; expected 0, or"),
    ({"prompt": "a", "top_k": None}, "top_k", "invalid_value", "top_k is None; expected an integer"),
    ({"prompt": "a", "add_bos": 1}, "add_bos", "invalid_value", "add_bos is 1; expected True, False or None"),
    ({"prompt": "a", "logprobs": 21}, "logprobs", "invalid_value", "logprobs is 21; expected at most 20"),
    (
        {"prompt": "a", "stop": ["b"] * 17},
        "stop",
        "invalid_value",
        "stop has 17 strings; expected at most 16",
    ),
    ({"prompt": "a", "stop": "b" * 257}, "stop", "invalid_value", "stop has a string of 257 characters"),
    ({"prompt": "a", "stop": [5]}, "stop", "invalid_value", "stop has 5; expected strings"),
    ({"prompt": "a", "logit_bias": [1]}, "logit_bias", "invalid_value", "logit_bias is [1]; expected an obj"),
    ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias", "invalid_value", "logit_bias has the key 'x'"),
    ({"prompt": "a", "logit_bias": {"5": 101}}, "logit_bias", "invalid_value", "logit_bias: the number of"),
    ({"prompt": "a", "logit_bias": {"99999": 1}}, "logit_bias", "invalid_value", "logit_bias has the token"),
    ({"method": "POST", "url": CHAT, "body": {}}, "custom_id", "missing_required_parameter", "custom_id is"),
    ({"custom_id": "a", "url": CHAT}, "method", "missing_required_parameter", "method is missing"),
    ({"custom_id": "a", "method": "POST", "url": CHAT}, "body", "missing_required_parameter", "body is miss"),
    (request("a", OK_BODY, more=1), "more", "unknown_parameter", "more is no field of a request; expected c"),
    (
        request("a", OK_BODY, "/v1/embeddings"),
        "url",
        "invalid_value",
        "url is '/v1/embeddings'; expected /v1",
    ),
    (request("a", OK_BODY, method="GET"), "method", "invalid_value", "method is 'GET'; expected POST"),
    (request("a", OK_BODY, method=["POST"]), "method", "invalid_value", "method is ['POST']; expected POST"),
    (request("a", [1]), None, "invalid_value", ""),
    (request("a", {**OK_BODY, "stream": True}), "stream", "invalid_value", "stream is True; expected false"),
    (request("a", {**OK_BODY, "n": 17}), "n", "invalid_value", "n is 17; expected at most 16"),
    (
        request("a", {**OK_BODY, "color": 1}),
        "color",
        "unknown_parameter",
        "color is no parameter of this path",
    ),
    (request("a", {**OK_BODY, "model": "other"}), "model", "model_not_found", "the model 'other' does not"),
    (
        request("a", {"prompt": [5] * 3000}),
        "prompt",
        "context_length_exceeded",
        "prompt has 3000 tokens; exp",
    ),
    (request("a", {"messages": []}, CHAT), "messages", "invalid_value", "messages has 0 entries; expected"),
]
FORMS = [({"prompt": "Once", "custom_id": "taken", "max_new_tokens": 1}, 1), (request("last", OK_BODY), 3)]


@pytest.mark.parametrize(
    ("line", "param", "code", "message"), WRONG, ids=[f"{n} {row[1]} {row[2]}" for n, row in enumerate(WRONG)]
)
def test_a_wrong_line_gets_an_error_in_its_place(
    demo: Runtime, tmp_path: Path, line: Any, param: str | None, code: str | None, message: str
) -> None:
    (before, _), (after, _) = FORMS
    first, found, last = answered(demo, tmp_path, [before, line, after])
    assert (first["error"], last["error"]) == (None, None)
    assert (first["custom_id"], last["custom_id"]) == ("taken", "last")
    given = line if isinstance(line, dict) else {}
    assert found["custom_id"] == (
        given.get("custom_id") or None if param != "custom_id" or code in TAKEN else None
    )
    if "prompt" in given:
        error, status = found["error"], found["status_code"]
        assert found.keys() == {"id", "custom_id", "status_code", "error"}
    else:
        assert found.keys() == {"id", "custom_id", "response", "error"}
        assert found["response"].keys() == {"status_code", "request_id", "body"}
        error, status = found["response"]["body"]["error"], found["response"]["status_code"]
        assert found["error"] == {"code": error["code"], "message": error["message"]}
    assert status == (404 if code == "model_not_found" else 400)
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"].startswith(message)
    assert "\n" not in error["message"]
    if message:
        assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)


def test_lines_end_as_they_do_elsewhere(demo: Runtime, tmp_path: Path) -> None:
    """A byte order mark, CRLF, empty lines and a last line without an end; numbers are those of the file."""
    lines = [json.dumps({"prompt": f"{n}", "max_new_tokens": 1, "custom_id": f"{n}"}) for n in range(3)]
    write_lines(tmp_path / "in.jsonl", [])
    content = "\ufeff" + lines[0] + "\r\n\r\n  \n" + lines[1] + "\n\n" + lines[2]
    (tmp_path / "in.jsonl").write_text(content, encoding="utf-8", newline="")
    with opened(tmp_path) as job:
        assert [(line.number, line.content.decode()) for line in job.pending()] == [
            (1, lines[0]), (4, lines[1]), (6, lines[2]),
        ]  # fmt: skip


@pytest.mark.parametrize("around", [2**20 - 3, 2**20 - 1, 2**20, 2**20 + 1, MAX_BYTES - 2, MAX_BYTES])
def test_lines_across_the_parts_in_which_a_file_is_read(tmp_path: Path, around: int) -> None:
    lines = [b"a" * around, b"b" * 5, b"c" * (MAX_BYTES + 2**20), b"d", b"e" * around]
    (tmp_path / "in.jsonl").write_bytes(b"\r\n".join(lines))
    with opened(tmp_path) as job:
        found = {line.number: line.content for line in job.pending()}
        assert found == {number: lines[number - 1] for number in (1, 2, 4, 5)}
        refused = job.lines.refusal(2)
        assert refused is not None
        assert str(refused).startswith("line 3 has 524288")  # the CR counts, or not


def test_a_first_line_of_many_may_be_repeated_often(tmp_path: Path) -> None:
    ids = ["a", "b", None, "a", "c", "b", None, "a", "\U0001f600"]
    write_lines(tmp_path / "in.jsonl", [{"prompt": "x", **({"custom_id": i} if i else {})} for i in ids])
    with opened(tmp_path) as job:
        refused = {index: str(e) for index in range(len(ids)) if (e := job.lines.refusal(index)) is not None}
    assert refused == {
        3: "custom_id is that of line 1 too; expected one of its own",
        5: "custom_id is that of line 2 too; expected one of its own",
        7: "custom_id is that of line 1 too; expected one of its own",
    }


def test_a_text_that_cannot_go_on_is_an_error_of_its_line(
    demo: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode_step = demo.engine.runner.model.decode_step

    def damaged(*arguments: Any, **keywords: Any) -> torch.Tensor:
        return decode_step(*arguments, **keywords).fill_(float("nan"))

    monkeypatch.setattr(demo.engine.runner.model, "decode_step", damaged)
    lines = [{"prompt": "Once"}, request("a", {**OK_BODY, "max_tokens": 2}), request("b", OK_BODY)]
    plain, failed, fine = answered(demo, tmp_path, lines)
    assert plain["status_code"] == failed["response"]["status_code"] == 500
    assert fine["error"] is None  # one token comes from the prompt
    for error in (plain["error"], failed["response"]["body"]["error"]):
        assert (error["type"], error["code"]) == ("server_error", "invalid_logits")


def test_longest_first_takes_fewer_steps_than_any_other_order(
    demo: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end no slot is empty while a long answer goes on that could have begun before."""
    chosen = random.Random(0)
    given = [
        {"prompt": [5, n], "max_new_tokens": chosen.choice([2, 8, 32]), "ignore_eos": True} for n in range(40)
    ]
    steps, step = [0], demo.engine.step

    def counted() -> None:
        steps[-1] += 1
        step()

    monkeypatch.setattr(demo.engine, "step", counted)
    expected = sum(line["max_new_tokens"] for line in given) / demo.max_batch_size
    longest_first = LineIndex.longest_first
    for order in (longest_first, lambda index: array("q", range(40)), lambda i: longest_first(i)[::-1]):
        monkeypatch.setattr(LineIndex, "longest_first", order)
        answered(demo, tmp_path, given)
        (tmp_path / "out.jsonl").unlink()
        steps.append(0)
    assert expected <= steps[0] < min(steps[1:3])
    assert steps[0] < 1.1 * expected


def test_stop_is_that_of_the_chat_format(demo: Runtime, tmp_path: Path) -> None:
    (found,) = answered(demo, tmp_path, [request("a", {"messages": USER, "temperature": 0}, CHAT)])
    content = found["response"]["body"]["choices"][0]["message"]["content"]
    assert f" {content}" == demo.generate(QUESTION, max_new_tokens=None, stop=STOP).text

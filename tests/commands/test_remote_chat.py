"""``adept-fast chat --server``: a conversation with a server that answers as it is told, or badly."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from http.client import HTTPResponse
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the server that answers as it is told runs on uvicorn")

from click.testing import CliRunner, Result
from raw_server import HEAD, MODELS, RawServer
from scripted_server import Failure, ScriptedServer

from adept_fast.commands.chat_client import MAX_BODY_BYTES, ChatClient
from adept_fast.commands.cli import main
from adept_fast.commands.event_stream import MAX_EVENT_BYTES

ROOT = Path(__file__).resolve().parents[2]
TOO_LONG = Failure(400, "the prompt has 600 tokens; expected at most 512", "context_length_exceeded")


def chat(url: str, *arguments: str, stdin: str = "Hello\n", **environment: str | None) -> Result:
    return CliRunner(env=environment).invoke(main, ["chat", "--server", url, *arguments], input=stdin)


def chunk(text: str) -> bytes:
    return b"data: %b\n\n" % json.dumps({"choices": [{"delta": {"content": text}}]}).encode()


def process(url: str, *arguments: str) -> subprocess.Popen[bytes]:
    """The program, which cannot import torch."""
    program = "import sys; sys.modules['torch'] = None; from adept_fast.__main__ import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, "chat", "--server", url, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_conversation() -> None:
    with ScriptedServer() as server:
        result = chat(server.url, stdin="What is\t1 + 1?\n\nAnd \u00e9?\n")
    assert (result.exit_code, result.stderr) == (0, "\n")
    assert result.stdout == "You said: What is\t1 + 1?\nYou said: And \u00e9?\n"
    assert server.requests[0] == {
        "model": "scripted-1b",
        "messages": [{"role": "user", "content": "What is\t1 + 1?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 128,
        "temperature": 0.0,
    }
    assert server.requests[1]["messages"] == [
        {"role": "user", "content": "What is\t1 + 1?"},
        {"role": "assistant", "content": "You said: What is\t1 + 1?"},
        {"role": "user", "content": "And \u00e9?"},
    ]


def test_sampling_options_are_sent() -> None:
    with ScriptedServer() as server:
        chat(
            f"{server.url}/v1/", "--max-new-tokens", "9", "--temperature", "0.7", "--top-k", "40",
            "--top-p", "0.9", "--min-p", "0.05", "--repetition-penalty", "1.1", "--seed", "7",
            "--stop", r"\n\n", "--stop", "x", "--frequency-penalty", "0.5", "--presence-penalty", "-1",
            "--logit-bias", "5=-100", "--logit-bias", "6=1.5",
        )  # fmt: skip
    expected = {
        "max_tokens": 9, "temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.05,
        "repetition_penalty": 1.1, "seed": 7, "stop": ["\n\n", "x"],
        "frequency_penalty": 0.5, "presence_penalty": -1.0, "logit_bias": {"5": -100.0, "6": 1.5},
    }  # fmt: skip
    assert {name: server.requests[0][name] for name in expected} == expected


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on_without_torch() -> None:
    with ScriptedServer() as server:
        server.answers.append(["Once upon ", "a time", threading.Event()])
        chat = process(server.url)
        assert chat.stdin is not None
        assert chat.stdout is not None
        chat.stdin.write(b"Tell me a story\n")
        chat.stdin.flush()
        assert chat.stdout.read(len("Once upon a time")) == b"Once upon a time"
        chat.send_signal(signal.SIGINT)
        assert server.left.wait(20), "the server goes on"
        stdout, stderr = chat.communicate(b"Go on\n", timeout=20)
    assert (stdout, stderr, chat.returncode) == (b"\nYou said: Go on\n", b"\n", 0)
    assert server.requests[1]["messages"][1] == {"role": "assistant", "content": "Once upon a time"}


def test_a_stream_that_is_left_closes_its_connection_at_once() -> None:
    with ScriptedServer() as server:
        server.answers.append(["Once", threading.Event()])
        stream = ChatClient(server.url).stream("scripted-1b", [{"role": "user", "content": "a"}], {})
        assert next(stream) == "Once"
        kept = [entry for entry in gc.get_objects() if isinstance(entry, HTTPResponse)]
        stream.close()
        assert server.left.wait(20), "the server goes on"
        assert [response.isclosed() for response in kept] == [True]


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (Failure(400, "top_p is 3;\nexpected a number"), ": top_p is 3; expected a number"),
        (
            Failure(429, "9 wait", headers={"Retry-After": "3"}),
            " has too much to do; it can be asked again in 3 seconds",
        ),
        (Failure(500, "the server \x1b[31mfailed"), r": the server \x1b[31mfailed"),
        (
            Failure(401, "no"),
            " asks for an API key; expected --api-key, or ADEPT_FAST_API_KEY, with one of its keys",
        ),
        ([Failure(504, "it took too long")], ": it took too long"),
    ],
    ids=["400", "429", "500", "401", "event"],
)
def test_an_error_is_one_line_and_the_conversation_goes_on(
    failure: Failure | Sequence[object], words: str
) -> None:
    with ScriptedServer() as server:
        server.answers.append(failure)
        result = chat(server.url, stdin="One\nTwo\n", ADEPT_FAST_API_KEY=None)
    assert (result.exit_code, result.stdout) == (0, "You said: Two\n")
    assert result.stderr == f"error: {server.url}{words}\n\n"
    assert [message["content"] for message in server.requests[1]["messages"]] == ["Two"]


def test_a_server_that_stops_during_the_conversation() -> None:
    with ScriptedServer() as server:
        chat = process(server.url)
        assert chat.stdin is not None
        assert chat.stdout is not None
        chat.stdin.write(b"One\n")
        chat.stdin.flush()
        assert chat.stdout.readline() == b"You said: One\n"
    stdout, stderr = chat.communicate(b"Two\nThree\n", timeout=20)
    assert (stdout, chat.returncode) == (b"", 0)
    assert stderr.decode() == f"error: {server.url} cannot be reached: Connection refused\n" * 2 + "\n"
    result = CliRunner().invoke(main, ["chat", "--server", server.url])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"error: {server.url} cannot be reached: Connection refused\n"


def test_an_api_key() -> None:
    with ScriptedServer() as server:
        server.key = "right"
        assert chat(server.url, "--api-key", "right").stdout == "You said: Hello\n"
        assert chat(server.url, ADEPT_FAST_API_KEY="right").stdout == "You said: Hello\n"
        wrong = chat(server.url, "--api-key", "wrong")
    assert (wrong.exit_code, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith(f"error: {server.url} refuses this API key; expected")


def test_the_oldest_turns_are_forgotten_when_the_context_is_full() -> None:
    with ScriptedServer() as server:
        server.answers.extend([["a"], ["b"], ["c"], TOO_LONG, TOO_LONG, ["d"], ["e"], *[TOO_LONG] * 4])
        result = chat(server.url, stdin="A\nB\nC\nD\nE\nF\n")
    assert result.stdout == "a\nb\nc\nd\ne\n"
    assert result.stderr.splitlines() == [
        "(the context is full: the first 2 turns are forgotten)",
        f"error: {server.url}: {TOO_LONG.message}",
        "",
    ]
    asked = ["".join(entry["content"] for entry in request["messages"]) for request in server.requests]
    assert asked == ["A", "AaB", "AaBbC", "AaBbCcD", "BbCcD", "CcD", "CcDdE", "CcDdEeF", "DdEeF", "EeF", "F"]


def test_turns_are_forgotten_before_there_is_no_room_for_an_answer() -> None:
    """Two turns of 40 tokens and a question do not fit into a context of 100, if an answer may have 20."""
    questions = [letter * 30 for letter in "abcd"]
    with ScriptedServer() as server:
        server.context = 100
        server.answers.extend([["x"] * 10 for _ in questions])
        result = chat(server.url, "--max-new-tokens", "20", stdin="\n".join(questions))
    forgotten = "(the context is full: the first 1 turns are forgotten)\n"
    assert (result.stdout, result.stderr) == (("x" * 10 + "\n") * 4, forgotten * 2 + "\n")
    asked = [[entry["content"][0] for entry in request["messages"]] for request in server.requests]
    assert asked == [["a"], ["a", "x", "b"], ["b", "x", "c"], ["c", "x", "d"]]


CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([HEAD, chunk("Half")], "closed the connection before the answer was complete"),
        ([HEAD, chunk("Half"), b'data: {"cho'], "closed the connection before the answer was complete"),
        ([CHUNKED, b"%x\r\n%b\r\n" % (len(chunk("Half")), chunk("Half"))], "IncompleteRead"),
        ([CHUNKED, b"%x\r\n%b\r\nzzz\r\n" % (len(chunk("Half")), chunk("Half"))], "IncompleteRead"),
        ([HEAD, chunk("Half"), b"data: {nonsense}\n\n"], "not valid JSON"),
        ([HEAD, chunk("Half"), b"data: [1, 2]\n\n"], "expected a JSON object"),
        ([HEAD, chunk("Half"), b"data: %b\n\n" % (b"[" * 100_000)], "nested too deeply"),
        ([HEAD, chunk("Half"), b'data: {"x": %b}\n\n' % (b"9" * 10_000)], "at most 308 digits"),
        ([HEAD, chunk("Half"), *[b"x" * 2**16] * 40], f"an event of more than {MAX_EVENT_BYTES} bytes"),
        ([HEAD, chunk("Half"), b'data: {"error": {}}\n\n'], "failed without a message"),
        ([HEAD, chunk("Half"), b'data: {"error": "text"}\n\n'], ": text"),
        ([HEAD, chunk("Half"), b"data: \xff\n\n"], "not valid JSON"),
    ],
    ids=range(12),
)  # fmt: skip
def test_a_stream_that_goes_wrong(answer: list[bytes], words: str) -> None:
    """What has come is printed and kept, the error is one line, and the next question is asked."""
    with RawServer(answer) as server:
        result = chat(server.url, stdin="One\nTwo\n")
    assert (result.exit_code, result.stdout) == (0, "Half\nHalf\n")
    first, second, end = result.stderr.split("\n", 2)
    assert (first, end) == (second, "\n")
    assert first.startswith("error: ")
    assert server.url in first
    assert words in first


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([], "cannot be reached: Remote end closed connection without response"),
        ([b"SSH-2.0-OpenSSH_9.2\r\n"], "sent what is no HTTP response (BadStatusLine"),
        (
            [b"HTTP/1.1 200 OK\r\n", *[b"X: " + b"y" * 2**16] * 9],
            "sent what is no HTTP response (LineTooLong",
        ),
        (
            [b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 999, b"\r\n"],
            "sent what is no HTTP response (HTTPException",
        ),
        ([MODELS], "answered with application/json; expected a stream of events"),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], "answered with status 204"),
        ([b"HTTP/1.1 500 No\r\n\r\n<html>\x1b[31m"], "answered with status 500"),
        ([b"HTTP/1.1 500 No\r\n\r\n", *[b"x" * 2**16] * 40], "answered with status 500"),
    ],
    ids=range(8),
)
def test_no_answer_at_all(answer: list[bytes], words: str) -> None:
    with RawServer(answer) as server:
        result = chat(server.url)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith(f"error: {server.url} {words}")
    assert result.stderr.count("\n") == 2


def test_a_redirection_is_not_followed() -> None:
    with RawServer() as other:
        target = b"HTTP/1.1 307 There\r\nLocation: %b/v1/chat/completions\r\n\r\n" % other.url.encode()
        with RawServer([target]) as server:
            result = chat(server.url, "--api-key", "secret")
    assert result.stderr == (
        f"error: {server.url} redirects to '{other.url}/v1/chat/completions', which is not followed\n\n"
    )
    assert "Authorization: Bearer secret\r\n" in server.requests[1]
    assert other.requests == []


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n{}", "lists no model; expected one in /v1/models"),
        (b'HTTP/1.1 200 OK\r\n\r\n{"data": [{"id": 7}]}', "lists no model; expected one in /v1/models"),
        (b"HTTP/1.1 404 No\r\n\r\n", "answered with status 404"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (MAX_BODY_BYTES + 1), "sent more than 1048576 bytes"),
    ],
    ids=range(4),
)
def test_a_server_without_models(models: bytes, words: str) -> None:
    with RawServer(models=models) as server:
        result = chat(server.url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {server.url} {words}")
    assert result.stderr.count("\n") == 1


def test_an_answer_does_not_control_the_terminal() -> None:
    text = "a\tb\nc\x1b[2J\x07\r\x9b5n\u200d\U0001f600"
    with RawServer([HEAD, *(chunk(character) for character in text), b"data: [DONE]\n\n"]) as server:
        result = chat(server.url)
    assert result.stdout == "a\tb\nc\\x1b[2J\\x07\\r\\x9b5n\u200d\U0001f600\n"


def test_an_answer_in_bytes_that_arrive_one_by_one() -> None:
    answer = HEAD + b": still there\n\n" + chunk("\u00e9\u2192\U0001f600") + b"data: [DONE]\n\n"
    answer = answer.replace(rb"\u00e9", "\u00e9".encode()).replace(rb"\u2192", "\u2192".encode())
    with RawServer([answer[at : at + 1] for at in range(len(answer))]) as server:
        result = chat(server.url)
    assert (result.stdout, result.stderr) == ("\u00e9\u2192\U0001f600\n", "\n")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make a certificate with")
def test_a_certificate_that_nobody_vouches_for(tmp_path: Path) -> None:
    file = str(tmp_path / "server.pem")
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -keyout - -out -"
    done = subprocess.run(make.split(), capture_output=True, check=True)
    Path(file).write_bytes(done.stdout)
    with RawServer(certificate=file) as server:
        result = chat(server.url, "--api-key", "secret")
    assert (result.exit_code, result.stdout, server.requests) == (1, "", [])
    assert result.stderr.startswith(
        f"error: {server.url} cannot be reached: [SSL: CERTIFICATE_VERIFY_FAILED]"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--server", "ftp://localhost"], "--server is 'ftp://localhost'; expected http://HOST:PORT or https://"),
        (["--server", "localhost:8000"], "--server is 'localhost:8000'; expected http://HOST:PORT"),
        (["--server", "http://localhost:port"], "--server is 'http://localhost:port'; expected"),
        (["--server", "http://[::1"], "--server is 'http://[::1'; expected"),
        (["--server", "http://a/?b"], "--server is 'http://a/?b'; expected"),
        (["--server", "http://me:secret@a"], "--server has a user name or a password; expected a URL"),
        (["--server", "http://a", "--api-key", "a\nb"], "--api-key has characters that no key has"),
        (["--server", "http://a", "--device", "cpu"], "--server is given together with --device, for"),
        (
            ["--server", "http://a", "--no-mmap", "--checkpoint", "demo", "--bos", "--prompt-lookup", "3"],
            "--server is given together with --checkpoint, --mmap/--no-mmap, --prompt-lookup, --bos/--no-bos",
        ),
        (["--api-key", "a"], "--api-key is given without --server; expected both or none"),
    ],
)  # fmt: skip
def test_usage_errors(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["chat", *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"Error: {message}" in result.stderr
    assert "secret" not in result.stderr


def test_variables_of_the_local_program_do_not_matter() -> None:
    with ScriptedServer() as server:
        result = chat(server.url, ADEPT_FAST_CHECKPOINT="/absent")
    assert (result.exit_code, result.stdout) == (0, "You said: Hello\n")

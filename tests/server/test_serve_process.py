"""``adept-fast serve`` as a process: its first line, its signals, its exit codes, and what it logs."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from server_process import FAILING_ENGINE, HELD_ENGINE, SLOW_MODEL, ServerProcess, completion, data_of

pytestmark = pytest.mark.slow

TOKENS = 400  # of an answer that is still running when the next thing happens: 8 s of the slow model


def events(lines: list[str]) -> list[dict[str, object]]:
    return [data for line in lines if (data := data_of(line)) is not None]


def test_it_says_where_it_serves_and_is_ready_then() -> None:
    with ServerProcess() as server:
        assert server.ready == f"serving demo on http://127.0.0.1:{server.port}\n"
        with server.client() as client:
            health = client.get("/health")
            assert (health.status_code, health.json()["status"]) == (200, "ok")
            assert client.get("/v1/models").json()["data"][0]["id"] == "demo"
            answer = client.post("/v1/completions", json=completion(3)).json()
            assert answer["usage"]["completion_tokens"] == 3
        server.signal(signal.SIGTERM)
        assert server.exit_code() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_running_requests_finish(number: signal.Signals, tmp_path: Path) -> None:
    release = tmp_path / "release"
    before = HELD_ENGINE.format(path=str(release))
    with ServerProcess(before=before) as server, server.client() as idle, server.client() as client:
        assert idle.get("/health").status_code == 200  # its connection stays open
        body = completion(TOKENS, stream=True, stream_options={"include_usage": True})
        with client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            first = next(lines)
            server.signal(number)
            while (health := idle.get("/health")).status_code == 200:
                pass
            assert (health.status_code, health.json()["reason"]) == (503, "the server is stopping")
            refused = idle.post("/v1/completions", json=completion(1))
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
            release.touch()
            rest = [first, *lines]
        assert rest[-2:] == ["data: [DONE]", ""]
        assert events(rest)[-1]["usage"]["completion_tokens"] == TOKENS  # type: ignore[index]
        assert server.exit_code() == 0


def test_the_rest_is_cancelled_after_the_grace_period() -> None:
    with ServerProcess("--grace-seconds", "0.1", before=SLOW_MODEL) as server, server.client() as client:
        with client.stream("POST", "/v1/completions", json=completion(TOKENS, stream=True)) as response:
            lines = response.iter_lines()
            first = next(lines)
            server.signal(signal.SIGTERM)
            rest = events([first, *lines])
        assert rest[-1]["error"]["code"] == "stopping"  # type: ignore[index]
        assert server.exit_code() == 0


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    body = completion(TOKENS, stream=True)
    with (
        ServerProcess(before=HELD_ENGINE.format(path=str(tmp_path / "absent"))) as server,
        server.client() as client,
        client.stream("POST", "/v1/completions", json=body) as response,
    ):
        lines = response.iter_lines()  # which closes the connection when it is garbage
        next(lines)
        server.signal(signal.SIGTERM)
        while client_status(server) == 200:
            pass
        server.signal(signal.SIGINT)
        assert server.exit_code() == 128 + signal.SIGINT


def client_status(server: ServerProcess) -> int:
    return httpx.get(f"{server.url}/health").status_code


def test_a_client_that_does_not_read_holds_up_neither_others_nor_the_end() -> None:
    body = json.dumps(completion(400, stream=True, n=8, logprobs=20, seed=1))
    request = (
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    )
    with ServerProcess("--batch-size", "9", "--grace-seconds", "1") as server, socket.socket() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.connect(("127.0.0.1", server.port))
        stuck.sendall(request.encode())
        assert stuck.recv(12) == b"HTTP/1.1 200"
        with server.client() as client:
            answer = client.post("/v1/completions", json=completion(20)).json()
            assert answer["usage"]["completion_tokens"] == 20
            # The slots of the stuck client become free: its answers end, and wait in memory.
            while "adept_fast_answers_running 0.0" not in client.get("/metrics").text:
                pass
        server.signal(signal.SIGTERM)
        assert server.exit_code() == 0


def test_a_failing_engine_ends_the_process(tmp_path: Path) -> None:
    failure = tmp_path / "fail"
    before = SLOW_MODEL + FAILING_ENGINE.format(path=str(failure))
    with ServerProcess("--log-format", "json", before=before) as server, server.client() as client:
        with client.stream("POST", "/v1/completions", json=completion(TOKENS, stream=True)) as response:
            lines = response.iter_lines()
            first = next(lines)
            failure.touch()
            rest = events([first, *lines])
        assert rest[-1]["error"]["type"] == "server_error"  # type: ignore[index]
        assert server.exit_code() == 1
        stderr = server.stderr().splitlines()
        assert stderr[-1] == "error: the engine failed: the device is lost"
        logged = [json.loads(line) for line in stderr[:-1]]
        failed = next(entry for entry in logged if entry["event"] == "the engine failed")
        assert failed["level"] == "error"
        assert failed["error"] == "RuntimeError"
        assert any("failing_step" in frame for frame in failed["traceback"])


def test_a_killed_server_starts_again_on_its_port() -> None:
    with ServerProcess() as server, server.client() as idle, server.client() as client:
        assert idle.get("/health").status_code == 200  # its connection outlives the server
        with client.stream("POST", "/v1/completions", json=completion(TOKENS, stream=True)) as response:
            lines = response.iter_lines()
            next(lines)
            server.signal(signal.SIGKILL)
            assert server.exit_code() == -signal.SIGKILL
        with ServerProcess(port=server.port) as again, again.client() as client_again:
            assert again.port == server.port
            answer = client_again.post("/v1/completions", json=completion(3)).json()
            assert answer["usage"]["completion_tokens"] == 3


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        server = ServerProcess("--checkpoint", "/absent", port=port)  # no model is looked for
        assert server.exit_code() == 1
        assert server.stderr() == f"error: cannot listen on 127.0.0.1 port {port}: Address already in use\n"


def test_the_log_has_numbers_and_no_texts() -> None:
    secret, key = "Peru is a secret", "sk-not-for-logs"
    with ServerProcess("--log-format", "json", ADEPT_FAST_API_KEY=key) as server:
        with server.client(headers={"Authorization": f"Bearer {key}", "X-Request-Id": "mine"}) as client:
            body = completion(5, prompt=secret, stop=["zebra"])
            answer = client.post("/v1/completions", json=body).json()
            client.post("/v1/completions", json={"prompt": secret, "zebra": 1})
            client.put("/api", json={"prompts": [secret], "tokens_to_generate": 10**6})
        with server.client(headers={"Authorization": "Bearer sk-wrong"}) as client:
            client.get("/v1/models/zebra")
        server.signal(signal.SIGTERM)
        stderr = server.stderr()
    logged = [json.loads(line) for line in stderr.splitlines()]
    assert logged[0]["event"] == "ready"
    assert (logged[0]["slots"], logged[0]["max_queue"]) == (8, 128)
    assert logged[0]["step_tokens"] >= 16
    requests = [entry for entry in logged if entry["event"] == "request"]
    assert [(entry["endpoint"], entry["status"]) for entry in requests] == [
        ("/v1/completions", 200),
        ("/v1/completions", 400),
        ("/api", 400),
        ("unknown", 401),
    ]
    first = requests[0]
    assert first["request_id"] == "mine"
    assert first["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert (first["completion_tokens"], first["cached_tokens"]) == (5, 0)
    assert first["finish_reason"] == "length"
    assert 0 < first["first_token_seconds"] <= first["seconds"]
    assert {"time", "level"} <= first.keys()
    for text in (secret, "Peru", key, "sk-wrong", "zebra", answer["choices"][0]["text"].strip()):
        assert text not in stderr


def test_the_log_has_texts_if_it_is_told_to() -> None:
    with ServerProcess("--log-format", "json", "--log-prompts") as server, server.client() as client:
        answer = client.post("/v1/completions", json=completion(5)).json()
        for no_log in (False, True):
            client.put("/api", json={"prompts": [f"no_log is {no_log}"], "no_log": no_log})
        server.signal(signal.SIGTERM)
        stderr = server.stderr()
    first = next(entry for line in stderr.splitlines() if "Once upon" in line for entry in [json.loads(line)])
    assert json.loads(first["body"])["prompt"] == "Once upon a time"
    assert first["answers"] == [answer["choices"][0]["text"]]
    assert "no_log is False" in stderr
    assert "no_log is True" not in stderr


def test_a_client_that_sends_too_much_reads_why() -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(64):
            yield b" " * 2**20

    with ServerProcess() as server, server.client(headers={"Content-Type": "application/json"}) as client:
        for body in (b" " * 2**26, chunks()):
            response = client.post("/v1/completions", content=body)
            assert (response.status_code, response.headers["connection"]) == (413, "close")
            assert "expected at most 4194304 bytes" in response.json()["error"]["message"]
        assert client.get("/health").status_code == 200


def test_what_is_no_request_is_refused() -> None:
    with ServerProcess("--log-format", "json") as server:
        for text, status in (
            (b"nonsense\r\n\r\n", b"400"),
            (b"GET /health HTTP/1.1\r\n\r\n", b"400"),  # without a host
            (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: a.example\r\n\r\n", b"400"),
            (b"GET /health HTTP/1.0\r\n\r\n", b"403"),
            (b"GET /health HTTP/1.1\r\nHost: a.example\r\n\r\n", b"403"),
            (b"GET http://localhost/health HTTP/1.1\r\nHost: a.example\r\n\r\n", b"403"),
            (b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", b"200"),
        ):
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(text)
                assert connection.recv(12).split()[1] == status, text
        server.signal(signal.SIGTERM)
        assert server.exit_code() == 0
        assert all(json.loads(line) for line in server.stderr().splitlines())


def test_signals_that_the_caller_ignores_stay_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        server = ServerProcess()
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with server:
        server.signal(signal.SIGHUP)
        with server.client() as client:
            assert client.get("/health").status_code == 200
        server.signal(signal.SIGTERM)
        assert server.exit_code() == 0


def test_a_host_that_others_reach_needs_a_decision() -> None:
    with ServerProcess("--host", "0.0.0.0", ADEPT_FAST_API_KEY="a-key") as server, server.client() as client:
        assert client.get("/v1/models").status_code == 401
        with_key = client.get("/v1/models", headers={"Authorization": "Bearer a-key", "Host": "any.example"})
        assert with_key.status_code == 200
    assert os.environ.get("ADEPT_FAST_API_KEY") is None

"""Who may use a server: keys, names of hosts, pages of other origins, types and sizes of bodies."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, MutableMapping

import httpx
import pytest
from asgi import with_client
from starlette.types import Send

from adept_fast import Runtime
from adept_fast.server import body_limit, send_limit
from adept_fast.server.answering import Load
from adept_fast.server.body_limit import BodyLimit
from adept_fast.server.exchange import Exchanges
from adept_fast.server.metrics import Metrics
from adept_fast.server.security import KeyCheck
from adept_fast.server.send_limit import SendLimit
from adept_fast.server.service import Service

KEYS = ("first-key", "second-key")
BODY = {"prompt": "Once upon a time", "max_tokens": 2}


def get(
    runtime: Runtime, path: str, headers: dict[str, str] | None = None, **settings: object
) -> httpx.Response:
    async def work(client: httpx.AsyncClient, _service: Service) -> httpx.Response:
        return await client.get(path, headers=headers)

    return with_client(runtime, work, **settings)


@pytest.mark.parametrize("key", KEYS)
def test_each_key_admits(demo: Runtime, key: str) -> None:
    response = get(demo, "/v1/models", {"Authorization": f"Bearer {key}"}, api_keys=KEYS)
    assert response.status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer first-ke",
        "Bearer first-keyy",
        "Bearer FIRST-KEY",
        "Bearer first-key second-key",
        "Basic first-key",
        "first-key",
        "Bearer caf\xe9",
    ],
)
def test_without_a_key_nothing_is_served(demo: Runtime, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    response = get(demo, "/v1/models", headers, api_keys=KEYS)  # type: ignore[arg-type]
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    assert "first-ke" not in response.text


@pytest.mark.parametrize("path", ["/metrics", "/absent", "/health/", "/page/absent", "/docs/../v1/models"])
def test_other_paths_need_a_key(demo: Runtime, path: str) -> None:
    assert get(demo, path, api_keys=KEYS).status_code == 401


@pytest.mark.parametrize("path", ["/", "/health", "/healthz", "/docs", "/openapi.json", "/page/style.css"])
def test_some_paths_need_no_key(demo: Runtime, path: str) -> None:
    assert get(demo, path, api_keys=KEYS).status_code == 200


def test_each_key_has_a_scope_of_the_cache() -> None:
    scopes = []

    async def app(scope: dict[str, dict[str, str]], _receive: object, _send: object) -> None:
        scopes.append(scope["state"]["cache_scope"])

    async def request(keys: tuple[str, ...], header: str) -> None:
        scope = {"type": "http", "path": "/v1/models", "headers": [(b"authorization", header.encode())]}
        await KeyCheck(app, keys, ["/"])(scope, None, None)  # type: ignore[arg-type]

    asyncio.run(request(KEYS, "Bearer first-key"))
    asyncio.run(request(KEYS, "bearer  second-key "))
    asyncio.run(request((), "Bearer first-key"))
    digests = [hashlib.sha256(key.encode()).hexdigest() for key in KEYS]
    assert scopes == [*digests, ""]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("localhost.:80", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8000", 200),
        ("[::1]", 200),
        ("evil.example", 403),
        ("evil.example:8000", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("evil.example#localhost", 403),
        ("localhost:evil", 403),
        ("[::2]:8000", 403),
        ("", 403),
    ],
)
def test_a_name_of_a_stranger_is_refused(demo: Runtime, host: str, status: int) -> None:
    for path in ("/v1/models", "/", "/health"):
        response = get(demo, path, {"Host": host}, allowed_hosts=("localhost", "127.0.0.1", "::1"))
        assert response.status_code == status
        if status == 403:
            assert response.json()["error"]["message"].startswith(f"Host is {host!r}; expected one of")


def test_any_name_passes_where_none_is_configured(demo: Runtime) -> None:
    assert get(demo, "/v1/models", {"Host": "example.org"}).status_code == 200


async def _preflight(client: httpx.AsyncClient, origin: str) -> httpx.Response:
    return await client.options(
        "/v1/chat/completions",
        headers={
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        },
    )


def test_pages_of_other_origins_are_kept_out_unless_configured(demo: Runtime) -> None:
    async def work(client: httpx.AsyncClient, _service: Service) -> None:
        refused = await _preflight(client, "https://page.example")
        assert refused.status_code >= 400
        assert not any(name.startswith("access-control") for name in refused.headers)
        # What a browser sends unasked is not read as JSON.
        for media_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
            sent = await client.post(
                "/v1/completions",
                content=b'{"prompt": "a", "max_tokens": 1}',
                headers={"Content-Type": media_type},
            )
            assert sent.status_code == 415, media_type
            assert not any(name.startswith("access-control") for name in sent.headers)

    with_client(demo, work)


def test_configured_origins_get_answers_and_errors(demo: Runtime) -> None:
    async def work(client: httpx.AsyncClient, _service: Service) -> None:
        allowed = await _preflight(client, "https://page.example")
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://page.example"
        assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
        assert "access-control-allow-credentials" not in allowed.headers
        other = await _preflight(client, "https://other.example")
        assert other.headers.get("access-control-allow-origin") != "https://other.example"
        unauthorized = await client.get("/v1/models", headers={"Origin": "https://page.example"})
        assert unauthorized.status_code == 401
        assert unauthorized.headers["access-control-allow-origin"] == "https://page.example"

    with_client(demo, work, api_keys=KEYS, cors_origins=("https://page.example",))


async def _chunks(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b" " * 500


@pytest.mark.parametrize("is_chunked", [False, True])
def test_large_bodies_are_refused(demo: Runtime, is_chunked: bool) -> None:
    async def work(client: httpx.AsyncClient, _service: Service) -> None:
        headers = {"Content-Type": "application/json"}
        body = _chunks(3) if is_chunked else b" " * 1001
        response = await client.post("/v1/completions", content=body, headers=headers)
        assert response.status_code == 413
        error = response.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert "expected at most 1000 bytes" in error["message"]
        fits = _chunks(2) if is_chunked else b" " * 1000
        response = await client.post("/v1/completions", content=fits, headers=headers)
        assert response.status_code == 400  # no JSON

    with_client(demo, work, max_body_bytes=1000)


def _limited(
    max_bytes: int, receive: list[dict[str, object]], headers: dict[str, str]
) -> list[dict[str, object]]:
    """What BodyLimit sends for a request whose messages come one by one; the client is silent after them."""
    sent = []

    async def app(_scope: object, receive: object, send: object) -> None:
        raise AssertionError("the body was passed on")

    async def next_message() -> dict[str, object]:
        if not receive:
            await asyncio.Event().wait()
        return receive.pop(0)

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": raw}
    asyncio.run(BodyLimit(app, max_bytes)(scope, next_message, send))  # type: ignore[arg-type]
    return sent


JSON_TYPE = {"Content-Type": "application/json"}


def test_a_body_is_refused_before_it_has_been_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limit, "_LINGER_SECONDS", 0.01)
    sent = _limited(10, [], {**JSON_TYPE, "Content-Length": "11"})
    assert sent[0]["status"] == 413
    assert (b"connection", b"close") in sent[0]["headers"]  # type: ignore[operator]
    unread = [{"type": "http.request", "body": b"12345678901", "more_body": True}] * 3
    assert _limited(10, unread, {**JSON_TYPE, "Transfer-Encoding": "chunked"})[0]["status"] == 413


@pytest.mark.parametrize("length", ["-1", "1e3", "²", "99999999999999999999999"])
def test_lengths_that_are_no_lengths(monkeypatch: pytest.MonkeyPatch, length: str) -> None:
    monkeypatch.setattr(body_limit, "_LINGER_SECONDS", 0.01)
    scope_headers = {**JSON_TYPE, "Content-Length": length}
    assert _limited(10, [], scope_headers)[0]["status"] == 413


def test_a_body_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limit, "BODY_SECONDS", 0.01)
    monkeypatch.setattr(body_limit, "_LINGER_SECONDS", 0.01)
    begun = [{"type": "http.request", "body": b"{", "more_body": True}]
    assert _limited(10, begun, {**JSON_TYPE, "Content-Length": "5"})[0]["status"] == 408


def test_a_client_that_leaves_while_it_sends() -> None:
    gone = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    assert _limited(10, gone, {**JSON_TYPE, "Content-Length": "5"}) == []


def test_a_client_that_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(send_limit, "SEND_SECONDS", 0.01)
    ended = []

    async def app(_scope: object, _receive: object, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await asyncio.ensure_future(send({"type": "http.response.body"}))  # which another task may do
        finally:
            ended.append(True)

    sent = []

    async def send(message: MutableMapping[str, object]) -> None:
        sent.append(message["type"])
        if len(sent) == 2:
            await asyncio.Event().wait()

    async def receive() -> dict[str, object]:
        return {"type": "http.disconnect"}

    asyncio.run(SendLimit(app)({"type": "http"}, receive, send))
    assert (sent, ended) == (["http.response.start", "http.response.body"], [True])


def test_a_response_that_takes_long_is_not_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(send_limit, "SEND_SECONDS", 0.01)

    async def main() -> None:
        looks = 0
        late = asyncio.Event()

        def look(watch: object) -> None:
            nonlocal looks
            looks += 1
            if looks == 3:
                late.set()
            whole_look(watch)  # type: ignore[arg-type]

        whole_look = send_limit._Watch._look
        monkeypatch.setattr(send_limit._Watch, "_look", look)

        async def app(_scope: object, _receive: object, send: Send) -> None:
            await late.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})

        sent = []

        async def send(message: MutableMapping[str, object]) -> None:
            sent.append(message["type"])

        await SendLimit(app)({"type": "http"}, None, send)  # type: ignore[arg-type]
        assert sent == ["http.response.start"]

    asyncio.run(main())


def test_headers_of_every_response(demo: Runtime) -> None:
    for path in ("/", "/v1/models", "/absent", "/health", "/docs"):
        headers = get(demo, path).headers
        assert headers["x-content-type-options"] == "nosniff"
        policy = headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy
        assert policy.startswith("default-src ")
        assert not any(word in policy for word in ("http:", "https:", "*", "unsafe-eval"))
        assert headers["x-request-id"].startswith("req-")


@pytest.mark.parametrize(("given", "is_kept"), [("abc-1.2_Z", True), ("a" * 129, False), ("a b", False)])
def test_the_id_of_a_request(demo: Runtime, given: str, is_kept: bool) -> None:
    answered = get(demo, "/v1/models", {"X-Request-Id": given}).headers["x-request-id"]
    assert (answered == given) is is_kept


def test_the_docs_need_no_other_host(demo: Runtime) -> None:
    page = get(demo, "/docs").text
    assert "<script" not in page
    assert "//" not in page.replace("<!doctype", "")
    for path in ("/v1/chat/completions", "/api", "/metrics", "/tokenize"):
        assert path in page
    for words in ("array of string", "number, above 0, to 100, default 1.0", "integer, from 0, to 1000"):
        assert words in page


def test_an_error_of_the_server_is_answered_without_its_message() -> None:
    async def app(_scope: object, _receive: object, _send: object) -> None:
        raise RuntimeError("a prompt")

    sent: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    metrics = Metrics("demo", lambda: Load(1, 0, 0), lambda: True)
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    asyncio.run(Exchanges(app, metrics)(scope, None, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 500
    assert b"a prompt" not in sent[1]["body"]  # type: ignore[operator]

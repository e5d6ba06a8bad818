"""Exchanges: each request and its response get an id, safe headers, a line in the log, and are counted."""

from __future__ import annotations

import contextvars
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adept_fast.server.api_error import CLIENT_GONE, ApiError
from adept_fast.server.logs import log, log_failure
from adept_fast.server.metrics import QUIET_ENDPOINTS, Metrics

REQUEST_ID = "X-Request-Id"
UNKNOWN = "unknown"  # the endpoint of requests that have none

_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_CONVERTER = re.compile(r":\w+}")  # of a parameter in the path of a route
_SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


@dataclass
class AnswerTotals:
    """The answers of an exchange that have ended, summed."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    first_token_seconds: float | None = None  # of the answer that ended first
    finish_reasons: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def fields(self) -> dict[str, Any]:
        """The fields for the log; none without an answer."""
        if not self.finish_reasons:
            return {}
        first = self.first_token_seconds
        return {
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
            "first_token_seconds": None if first is None else round(first, 4),
            "finish_reason": ",".join(dict.fromkeys(self.finish_reasons)),
        }


@dataclass
class Exchange:
    """A request and its response so far. ``has_texts`` says whether the log may have prompts and answers."""

    request_id: str
    method: str
    metrics: Metrics
    has_texts: bool = False
    started_at: float = field(default_factory=time.monotonic)
    status: int | None = None
    totals: AnswerTotals = field(default_factory=AnswerTotals)
    body: str | None = None  # of the request, if it is for the log

    def seconds(self) -> float:
        """Since its beginning."""
        return time.monotonic() - self.started_at


current: contextvars.ContextVar[Exchange | None] = contextvars.ContextVar("exchange", default=None)


class Exchanges:
    """Follows each request from its first byte to the last of its response; passed before all else."""

    def __init__(self, app: ASGIApp, metrics: Metrics, *, log_texts: bool = False) -> None:
        self._app, self._metrics, self._log_texts = app, metrics, log_texts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope).get(REQUEST_ID))
        exchange = Exchange(request_id, scope["method"], self._metrics, self._log_texts)
        scope.setdefault("state", {})["request_id"] = exchange.request_id
        current.set(exchange)

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                _add_headers(MutableHeaders(scope=message), exchange.request_id)
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception as error:  # noqa: BLE001 (the last place where it can be logged without its message)
            log_failure("request failed", error, request_id=exchange.request_id)
            if exchange.status is None:
                failed = ApiError(500, "the server failed to answer this request; its log says why")
                await failed.response()(scope, receive, send_named)
        finally:
            self._finish(exchange, scope)

    def _finish(self, exchange: Exchange, scope: Scope) -> None:
        endpoint = _endpoint(scope)
        # Without a status, the client left before it got any.
        status = CLIENT_GONE if exchange.status is None else exchange.status
        self._metrics.responded(endpoint, status)
        if endpoint in QUIET_ENDPOINTS and status == 200:
            return
        log(
            "request",
            request_id=exchange.request_id,
            client=(scope.get("client") or (None,))[0],
            method=exchange.method if endpoint != UNKNOWN else None,
            endpoint=endpoint,
            status=status,
            seconds=round(exchange.seconds(), 4),
            **exchange.totals.fields(),
            body=exchange.body if exchange.has_texts else None,
            answers=exchange.totals.texts or None if exchange.has_texts else None,
        )


def _request_id(given: str | None) -> str:
    """The client's own id, if it is one that a line of the log can hold; else a new one."""
    return given if given and _SAFE_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"


def _add_headers(headers: MutableHeaders, request_id: str) -> None:
    headers[REQUEST_ID] = request_id
    for name, value in _SAFE_HEADERS.items():
        headers.setdefault(name, value)


def _endpoint(scope: Scope) -> str:
    """The path as the OpenAPI document has it; never the client's own, of which there is no end."""
    return _CONVERTER.sub("}", getattr(scope.get("route"), "path", UNKNOWN))

"""BodyLimit: reads the body of a request before its route does, up to a limit of bytes and of time."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adept_fast.server.api_error import ApiError
from adept_fast.server.exchange import current
from adept_fast.system.short_text import short_repr

BODY_SECONDS = 60.0  # for a client to send all of it
_LINGER_SECONDS = 5.0  # a client that is still sending may not have read the answer

_JSON = "application/json"


class BodyLimit:
    """Refuses bodies that are too large (413), arrive too slowly (408), or are not declared as JSON (415).

    A browser sends JSON to another origin only after asking that server, which answers no unless CORS is
    configured; other types it would send unasked.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(Headers(scope=scope), receive)
        except ApiError as error:
            await _refuse(error, scope, receive, send)
            return
        if body is not None:
            if body and (exchange := current.get()) and exchange.has_texts:
                exchange.body = body.decode(errors="replace")
            await self._app(scope, _replay(body, receive), send)

    async def _read(self, headers: Headers, receive: Receive) -> bytes | None:
        """The body; None if the client has gone. Raises ApiError."""
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._max_bytes:
            raise self._too_large(f"{length} bytes" if length.isdecimal() else "no length")
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        has_body = length.strip("0") != "" or "transfer-encoding" in headers
        if has_body and media_type != _JSON:
            raise ApiError(415, f"Content-Type is {short_repr(media_type)}; expected {_JSON}")
        try:
            return await asyncio.wait_for(self._read_all(receive), BODY_SECONDS)
        except asyncio.TimeoutError as error:
            raise ApiError(
                408, f"the body took over {BODY_SECONDS:g} s; expected all of it before"
            ) from error

    async def _read_all(self, receive: Receive) -> bytes | None:
        body, has_more = bytearray(), True
        while has_more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                raise self._too_large(f"over {self._max_bytes} bytes")
            has_more = message.get("more_body", False)
        return bytes(body)

    def _too_large(self, found: str) -> ApiError:
        return ApiError(413, f"the body has {found}; expected at most {self._max_bytes} bytes")


def _replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that first returns the whole body, then what comes after it: the client's leaving."""
    is_read = False

    async def replay() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Send the error at once, and close the connection when the client has stopped sending, or soon after.

    If it were closed at once, what the client still sends would be answered with a reset, which may overtake
    the error.
    """

    async def send_unfinished(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"connection", b"close")]
        else:
            message["more_body"] = True
        await send(message)

    async def drain() -> None:
        message: Message = {"more_body": True}
        while message.get("more_body", False):
            message = await receive()

    await error.response()(scope, receive, send_unfinished)
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(drain(), _LINGER_SECONDS)
    await send({"type": "http.response.body", "body": b"", "more_body": False})

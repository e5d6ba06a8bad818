"""EventStream: server-sent events, as long as there is a client; and other work that ends with its client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from adept_fast.server.api_error import ApiError, internal_error

T = TypeVar("T")


async def while_connected(receive: Receive, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled if the client goes. Raises ClientDisconnect then.

    The body of the request must have been read.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        leaving.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends the data of events, one a message, then ``[DONE]``, or the error that ended them.

    The generator is closed when the client goes, too.
    """

    media_type = "text/event-stream"

    def __init__(self, first: str, events: AsyncGenerator[str, None]) -> None:
        # Proxies must pass each event on at once.
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first, self._events = first, events

    @classmethod
    async def begin(cls, receive: Receive, events: AsyncGenerator[str, None]) -> EventStream:
        """Wait for the first event. Raises what it raises, and ClientDisconnect."""
        return cls(await while_connected(receive, anext(events)), events)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            try:
                await while_connected(receive, self._send_all(send))
            except ClientDisconnect:
                return  # which closes the events

    async def _send_all(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await _send(send, start)
        await _send_data(send, self._first)
        try:
            async for data in self._events:
                await _send_data(send, data)
        except ClientDisconnect:
            raise
        except ApiError as error:
            await _send_end(send, error.body().model_dump_json())
        except Exception:
            await _send_end(send, internal_error().body().model_dump_json())
            raise  # for the log
        else:
            await _send_end(send, "[DONE]")


async def _send_data(send: Send, data: str) -> None:
    body = f"data: {data}\n\n".encode()
    await _send(send, {"type": "http.response.body", "body": body, "more_body": True})


async def _send_end(send: Send, data: str) -> None:
    await _send_data(send, data)
    await _send(send, {"type": "http.response.body", "body": b"", "more_body": False})


async def _send(send: Send, message: Message) -> None:
    try:
        await send(message)
    except OSError as error:  # so servers report that the client has gone
        raise ClientDisconnect from error

"""SendLimit: ends a response whose client does not read it."""

from __future__ import annotations

import asyncio
import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adept_fast.server.exchange import current
from adept_fast.server.logs import log

SEND_SECONDS = 60.0  # that a message may wait for the client to read earlier ones


class SendLimit:
    """Cancels the work for a response if the client lets a message wait too long.

    An answer is generated without waiting for its client, and what the client has not read waits in memory.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        watch = _Watch()

        async def watched_send(message: Message) -> None:
            watch.sending_since = watch.now()
            await send(message)
            watch.sending_since = None

        try:
            await self._app(scope, receive, watched_send)
        except asyncio.CancelledError:
            if not watch.has_cancelled:
                raise
            exchange = current.get()
            request_id = None if exchange is None else exchange.request_id
            log("client does not read", logging.WARNING, request_id=request_id, seconds=SEND_SECONDS)
        finally:
            watch.end()


class _Watch:
    """Looks every SEND_SECONDS at how long the current task has been sending."""

    def __init__(self) -> None:
        self.sending_since: float | None = None
        self.has_cancelled = False
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(SEND_SECONDS, self._look)

    def now(self) -> float:
        return self._loop.time()

    def end(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        seconds = 0.0 if self.sending_since is None else self.now() - self.sending_since
        if seconds >= SEND_SECONDS and self._task is not None:
            self.has_cancelled = True
            self._task.cancel()
        else:
            self._timer = self._loop.call_later(SEND_SECONDS - seconds, self._look)

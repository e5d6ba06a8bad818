"""A server on a free port, whose engine steps only as a test permits; and one without a network."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import httpx
import uvicorn
from fastapi import FastAPI

from adept_fast.engine.runtime import Runtime
from adept_fast.engine.scheduler import Scheduled
from adept_fast.server.app import create_app
from adept_fast.server.service import Service
from adept_fast.server.settings import Settings

PATIENCE_SECONDS = 60.0


def wait_until(is_done: Callable[[], bool]) -> None:
    """Return as soon as ``is_done()``."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_done():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.002)


async def until(is_done: Callable[[], bool]) -> None:
    """``wait_until`` for coroutines."""
    await asyncio.to_thread(wait_until, is_done)


class Gate:
    """Stands before each step of an engine; open until a test closes it.

    ``cancelled`` are the sequences that the server wants to end.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._step, self._cancel = runtime.engine.step, runtime.engine.cancel
        self._changed = threading.Condition()
        self._is_open, self._permits = True, 0
        self.cancelled: list[object] = []
        runtime.engine.step = self._gated_step  # type: ignore[method-assign]
        runtime.engine.cancel = self._noted_cancel  # type: ignore[method-assign]

    def close(self) -> None:
        with self._changed:
            self._is_open, self._permits, self.cancelled = False, 0, []

    def permit(self, steps: int) -> None:
        """Let this many steps pass."""
        with self._changed:
            self._permits += steps
            self._changed.notify_all()

    def open(self) -> None:
        with self._changed:
            self._is_open = True
            self._changed.notify_all()

    def _noted_cancel(self, sequence: Scheduled) -> None:
        if not sequence.is_finished and sequence not in self.cancelled:
            self.cancelled.append(sequence)
        self._cancel(sequence)

    def _gated_step(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_open or self._permits > 0)
            self._permits = max(0, self._permits - 1)
        self._step()


@dataclass(frozen=True)
class RunningServer:
    """A server in another thread."""

    url: str
    service: Service
    gate: Gate

    @property
    def is_idle(self) -> bool:
        """Whether every slot is free and nothing waits."""
        load = self.service.load()
        return (load.running, load.waiting) == (0, 0)


@contextlib.contextmanager
def running_server(runtime: Runtime, settings: Settings) -> Iterator[RunningServer]:
    service, gate = Service(runtime), Gate(runtime)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app_of(service, settings), log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            wait_until(lambda: server.started or not thread.is_alive())
            yield RunningServer(f"http://127.0.0.1:{listener.getsockname()[1]}", service, gate)
        finally:
            gate.open()
            server.should_exit = True
            thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


def app_of(service: Service, settings: Settings) -> FastAPI:
    app = create_app(service, settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop(0)

    app.router.lifespan_context = lifespan
    return app


def in_process(app: FastAPI) -> httpx.AsyncClient:
    """A client of a server without a network. Errors within the server are responses, as on a network."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://server")

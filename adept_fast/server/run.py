"""Running a server: its socket, its signals, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn

from adept_fast.engine.runtime import Runtime
from adept_fast.server.app import create_app
from adept_fast.server.logs import log, log_failure
from adept_fast.server.service import Service
from adept_fast.server.settings import Settings
from adept_fast.system.short_text import short_repr

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_BACKLOG = 512  # connections that wait to be accepted
# For clients to read what has been written for them, once all answers have ended.
_MAX_FLUSH_SECONDS = 5.0
_MIN_FLUSH_SECONDS = 1.0


class ServerError(ValueError):
    """A server that cannot begin, or that has ended by itself."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that holds an address, but takes no connections yet.

    Raises ServerError if the host is unknown, or the address is another program's.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        # localhost may have two addresses, and some clients try one of them only.
        family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        listener = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ServerError(f"--host is {short_repr(host)}, which is no address of this machine") from error
    try:
        # A server that was killed leaves connections that would hold its address for a minute.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _not_bound(host, port, error) from error
    return listener


def url_of(listener: socket.socket, host: str) -> str:
    """The URL of a bound socket, with the port that the system chose for port 0."""
    port = listener.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    runtime: Runtime, settings: Settings, listener: socket.socket, on_ready: Callable[[], None]
) -> None:
    """Serve until a signal, and end in order: no new requests, running ones for ``settings.grace_seconds``.

    A second signal ends the process at once, with the exit status of a shell. Signals that are ignored stay
    so. Raises ServerError if the engine fails, or if another program has the address.
    """
    asyncio.run(_serve(runtime, settings, listener, on_ready))


async def _serve(
    runtime: Runtime, settings: Settings, listener: socket.socket, on_ready: Callable[[], None]
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_log_failure_of_loop)
    try:
        listener.listen(_BACKLOG)
    except OSError as error:  # two programs may bind to an address; the second one to listen fails
        host, port = listener.getsockname()[:2]
        raise _not_bound(host, port, error) from error
    stopping = asyncio.Event()
    service = Service(runtime, on_failure=stopping.set)
    server = _Server(_config(service, settings), on_ready)
    service.start()
    with _signals_set(stopping, loop):
        serving = loop.create_task(server.serve(sockets=[listener]))
        serving.add_done_callback(lambda _: stopping.set())
        await stopping.wait()
        await _stop(service, server, settings.grace_seconds)
        await serving
    if service.failure is not None:
        raise ServerError(f"the engine failed: {service.failure}") from service.failure


async def _stop(service: Service, server: _Server, grace_seconds: float) -> None:
    """Let requests end, then connections."""
    started = time.monotonic()
    if service.failure is not None:
        log_failure("the engine failed", service.failure)
    else:
        log("stopping", grace_seconds=grace_seconds)
        await service.stop(grace_seconds)
    left = grace_seconds - (time.monotonic() - started)
    server.end(min(max(left, _MIN_FLUSH_SECONDS), _MAX_FLUSH_SECONDS))


def _config(service: Service, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(service, settings),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
    )


class _Server(uvicorn.Server):
    """Uvicorn's server, which leaves signals alone and says when it takes connections."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._on_ready()

    def end(self, flush_seconds: float) -> None:
        """Close idle connections at once, and those with a response when it is sent, or after this time."""
        self.config.timeout_graceful_shutdown = flush_seconds  # type: ignore[assignment]
        self.should_exit = True


@contextlib.contextmanager
def _signals_set(event: asyncio.Event, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Within the block, a signal sets the event; one more ends the process, even if the loop is stuck."""
    has_come = False

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal has_come
        if has_come:
            os._exit(128 + number)
        has_come = True
        loop.call_soon_threadsafe(event.set)

    replaced = {n: signal.signal(n, handle) for n in _SIGNALS if signal.getsignal(n) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


def _log_failure_of_loop(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # The loop's own message has the error's, which may quote a prompt.
    error = context.get("exception")
    if error is not None:
        log_failure("task failed", error)


def _not_bound(host: str, port: int, error: OSError) -> ServerError:
    return ServerError(f"cannot listen on {host} port {port}: {error.strerror or error}")

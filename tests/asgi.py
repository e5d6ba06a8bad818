"""Applications without a socket: requests are made in the process itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import httpx
from fastapi import FastAPI

from adept_fast import Runtime
from adept_fast.server.app import create_app
from adept_fast.server.service import Service
from adept_fast.server.settings import Settings

T = TypeVar("T")


@asynccontextmanager
async def serving(runtime: Runtime, **settings: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Service]]:
    """A client of a server of the runtime, and its service."""
    service = Service(runtime)
    service.start()
    app = create_app(service, Settings(**{"model_name": "demo", **settings}))
    try:
        async with client_of(app) as client:
            yield client, service
    finally:
        await service.stop(0)


def client_of(app: FastAPI, **settings: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60, **settings)


def with_client(
    runtime: Runtime, work: Callable[[httpx.AsyncClient, Service], Awaitable[T]], **settings: Any
) -> T:
    """The result of ``work``, on an event loop of its own."""

    async def run() -> T:
        async with serving(runtime, **settings) as (client, service):
            return await work(client, service)

    return asyncio.run(run())

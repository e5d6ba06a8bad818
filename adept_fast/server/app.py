"""The application: all routes of a server, and what every request passes through."""

from __future__ import annotations

from fastapi import FastAPI

from adept_fast import __version__
from adept_fast.server import health
from adept_fast.server.body_limit import BodyLimit
from adept_fast.server.metrics import Metrics
from adept_fast.server.security import HostCheck, KeyCheck
from adept_fast.server.service import Service
from adept_fast.server.settings import Settings

OPEN_PATHS = ("/", "/health", "/healthz")  # need no key


def create_app(service: Service, settings: Settings) -> FastAPI:
    """The application that serves a Service."""
    metrics = Metrics(settings.model_name, service.load, lambda: service.is_ready)
    app = FastAPI(title="adept-fast", version=__version__, docs_url=None, redoc_url=None)
    app.include_router(health.router(service))
    # The last one that is added is passed first.
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, metrics=metrics)
    app.add_middleware(KeyCheck, keys=settings.api_keys, open_paths=OPEN_PATHS, metrics=metrics)
    if settings.allowed_hosts is not None:
        app.add_middleware(HostCheck, allowed=settings.allowed_hosts, metrics=metrics)
    return app

"""The application: all routes of a server, and what every request passes through."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from adept_fast import __version__
from adept_fast.server import adept_api, api_docs, api_error, health, metrics, openai, page
from adept_fast.server.answering import AnswerService
from adept_fast.server.body_limit import BodyLimit
from adept_fast.server.exchange import REQUEST_ID, Exchanges
from adept_fast.server.security import HostCheck, KeyCheck
from adept_fast.server.send_limit import SendLimit
from adept_fast.server.settings import Settings

# They need no key: they tell nothing of a model or its users, and a browser has no key to send for a page.
OPEN_PATHS = ("/health", "/healthz", "/docs", "/openapi.json", *page.PATHS)


def create_app(service: AnswerService, settings: Settings) -> FastAPI:
    """The application of a service."""
    app = FastAPI(title="adept-fast", version=__version__, docs_url=None, redoc_url=None)
    counted = metrics.Metrics(settings.model_name, service.load, lambda: service.is_ready)
    for routes in (
        openai.router(service, settings),
        adept_api.router(service, settings),
        health.router(service),
        metrics.router(counted),
        api_docs.router(),
        page.router(),
    ):
        app.include_router(routes)
    api_error.install(app)
    # The one that is added last is passed first.
    app.add_middleware(SendLimit)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(KeyCheck, keys=settings.api_keys, open_paths=OPEN_PATHS)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "PUT"),
            allow_headers=("*",),
            expose_headers=(REQUEST_ID, "Retry-After"),
        )
    if settings.allowed_hosts is not None:
        app.add_middleware(HostCheck, allowed=settings.allowed_hosts)
    app.add_middleware(Exchanges, metrics=counted, log_texts=settings.log_prompts)
    return app

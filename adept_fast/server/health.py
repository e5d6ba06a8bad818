"""``/health`` and ``/healthz``: whether requests are taken."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel

from adept_fast.server.answering import AnswerService


class Health(BaseModel):
    """``reason`` says why requests are not taken."""

    status: Literal["ok", "unavailable"]
    reason: str | None = None


def router(service: AnswerService) -> APIRouter:
    """The routes; they answer 200 if requests are taken, else 503."""
    routes = APIRouter(tags=["operations"])
    unavailable: dict[int | str, dict[str, Any]] = {503: {"description": "The reason.", "model": Health}}
    as_text: dict[int | str, dict[str, Any]] = {
        503: {"description": "The reason.", "content": {"text/plain": {}}}
    }

    @routes.get("/health", responses=unavailable)
    def health(response: Response) -> Health:
        """Whether requests are taken; if not, why."""
        reason = _reason(service)
        response.status_code = 503 if reason else 200
        return Health(status="unavailable" if reason else "ok", reason=reason)

    @routes.get("/healthz", response_class=PlainTextResponse, responses=as_text)
    def healthz() -> PlainTextResponse:
        """The same for Adept's clients, as text."""
        reason = _reason(service)
        return PlainTextResponse(reason or "ok", 503 if reason else 200)

    return routes


def _reason(service: AnswerService) -> str | None:
    if service.is_ready:
        return None
    return "the engine has failed" if service.failure is not None else "the server is stopping"

"""OpenAI's API: models, completions and chat completions; and the tokenizer's two paths."""

from __future__ import annotations

from fastapi import APIRouter

from adept_fast.server.answering import AnswerService
from adept_fast.server.openai import chat, completions, models, tokenization
from adept_fast.server.settings import Settings


def router(service: AnswerService, settings: Settings) -> APIRouter:
    """The routes of all."""
    routes = APIRouter()
    for part in (models, completions, chat, tokenization):
        routes.include_router(part.router(service, settings))
    return routes

"""Requests to OpenAI's routes without a network, to a Service whose answers are written in advance."""

from __future__ import annotations

import asyncio
import functools
import json
from typing import Any

import httpx
from fastapi import FastAPI
from openai_server import SETTINGS
from scripted_service import ScriptedService, step
from serving import app_of, in_process

from adept_fast import Runtime

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "a"}]
ANSWER = (step(" b", "length"),)
JSON = {"Content-Type": "application/json"}


def post(runtime: Runtime, path: str, body: Any, script: Any = ANSWER, **headers: str) -> httpx.Response:
    service, app = scripted_app(runtime)
    service.script = script

    async def send() -> httpx.Response:
        async with in_process(app) as http:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            return await http.post(path, content=content, headers={**JSON, **headers})

    return asyncio.run(send())


@functools.lru_cache
def scripted_app(runtime: Runtime) -> tuple[ScriptedService, FastAPI]:
    service = ScriptedService(runtime)
    return service, app_of(service, SETTINGS)


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of a response that has OpenAI's form."""
    body = response.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert "\n" not in error["message"]
    return error

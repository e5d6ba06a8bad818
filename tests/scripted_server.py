"""A server with the page and with OpenAI's chat API, whose answers are written beforehand."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from adept_fast.server import page

CUT = object()  # the connection breaks


@dataclass
class Failure:
    """An answer that is an error: its status, its message and what else it has."""

    status: int
    message: str
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)


# Pieces of text. A float is seconds without any, an Event is waited for, a Failure is sent as an event, CUT
# breaks the connection.
Script = Sequence[object]


class ScriptedServer:
    """Serves on a free port of 127.0.0.1 while it is entered.

    Attributes:
        answers: a script, or a failure, for each of the next requests; then the answer is ``You said: …``.
        requests: the bodies of the chat requests so far.
        left: set when a client has left an answer that is not complete.
        key: the API key that requests must have.
        context: of the model, if that is told. A character of a prompt is a token, and so is a piece of text.
    """

    def __init__(self) -> None:
        self.answers: deque[Script | Failure] = deque()
        self.requests: list[dict[str, Any]] = []
        self.left = threading.Event()
        self.key: str | None = None
        self.context: int | None = None
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen()
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(self._app(), log_config=None, lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End, whatever is going on; nobody listens on the port any more."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(timeout=30)
        self._socket.close()

    def _app(self) -> FastAPI:
        app = FastAPI()
        app.include_router(page.router())

        @app.get("/v1/models")
        async def models(request: Request) -> Response:
            model = {"id": "scripted-1b", "max_model_len": self.context}
            return self._refusal(request) or JSONResponse({"object": "list", "data": [model]})

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Response:
            if refusal := self._refusal(request):
                return refusal
            body = await request.json()
            self.requests.append(body)
            script = self.answers.popleft() if self.answers else echo(body)
            if isinstance(script, Failure):
                return _failed(script)
            prompt = sum(len(message["content"]) for message in body["messages"])
            stream = self._stream(script, request, prompt)
            return StreamingResponse(stream, media_type="text/event-stream")

        return app

    def _refusal(self, request: Request) -> Response | None:
        if self.key is None or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return _failed(Failure(401, "the API key is none of this server's", "invalid_api_key"))

    async def _stream(self, script: Script, request: Request, prompt: int) -> AsyncIterator[str]:
        tokens = 0
        try:
            yield _event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
            for step in script:
                if isinstance(step, threading.Event):
                    yield ": still there\n\n"
                    await _wait(step, request)
                elif isinstance(step, Failure):
                    yield _event(_error(step))
                    return
                elif isinstance(step, float):
                    await asyncio.sleep(step)
                elif step is CUT:
                    raise ConnectionResetError
                else:
                    tokens += 1
                    yield _event({"choices": [{"index": 0, "delta": {"content": step}}]})
        except (_LeftError, asyncio.CancelledError):
            self.left.set()
            raise
        yield _event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": tokens,
            "prompt_tokens_details": {"cached_tokens": prompt // 2},
        }
        yield _event({"choices": [], "usage": usage})
        yield "data: [DONE]\n\n"


class _LeftError(Exception):
    """The client has closed the connection."""


def echo(body: dict[str, Any]) -> Script:
    """An answer that depends on the question, and on the seed."""
    seed = f" (seed {body['seed']})" if "seed" in body else ""
    return ["You ", "said: ", body["messages"][-1]["content"], seed]


async def _wait(gate: threading.Event, request: Request) -> None:
    while not await asyncio.to_thread(gate.wait, 0.02):
        if await request.is_disconnected():
            raise _LeftError


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _error(failure: Failure) -> dict[str, Any]:
    return {"error": {"message": failure.message, "type": "error", "param": None, "code": failure.code}}


def _failed(failure: Failure) -> JSONResponse:
    return JSONResponse(_error(failure), failure.status, headers=failure.headers)

"""Delivery: from queued answers to a response, whole or as a stream of events."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from adept_fast.engine.sequence import Generation, GenerationEvent, Request
from adept_fast.server.answering import AnswerService
from adept_fast.server.api_error import ErrorBody
from adept_fast.server.openai.answers import Answers
from adept_fast.server.openai.body import inlined_schema
from adept_fast.server.openai.event_stream import EventStream, while_connected

STATUSES = 400, 401, 404, 408, 413, 415, 429, 500, 503, 504  # of errors


def documented(whole: type[BaseModel], event: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI document's entry for a response, whole or as a stream."""
    description = f"With `stream`, the data of each event is a {event.__name__}, and `[DONE]` at the end."
    content = {"anyOf": [inlined_schema(model, "serialization") for model in (event, ErrorBody)]}
    text = {"type": "string", "contentMediaType": "application/json", "contentSchema": content}
    # Of each event, as OpenAPI 3.2 has it; readers of earlier versions take a stream's schema so too.
    schema = {
        "type": "object",
        "properties": {"data": {"anyOf": [{"const": "[DONE]"}, text]}},
        "required": ["data"],
        "description": description,
    }
    events = {"text/event-stream": {"schema": schema}}
    return {"model": whole, "description": "The answers.", "content": events}


class Writer(ABC):
    """Writes the answers of one HTTP request in the form of its API."""

    @abstractmethod
    def whole(self, generations: Sequence[Generation]) -> BaseModel:
        """The response without a stream."""

    @abstractmethod
    def chunks(self, index: int, event: GenerationEvent, answers: Answers) -> Iterator[BaseModel]:
        """The events of a stream for a step of one answer."""

    @abstractmethod
    def last_chunk(self, generations: Sequence[Generation]) -> BaseModel | None:
        """The event at the end of a stream, with the usage, if it was requested."""


async def deliver(
    http_request: HttpRequest,
    service: AnswerService,
    requests: Sequence[Request],
    writer: Writer,
    *,
    stream: bool,
) -> Response:
    """Queue requests and answer with what they generate. Raises ApiError, and ClientDisconnect.

    Errors after the first event of a stream are an event. Whatever ends the response cancels the requests.
    """
    answers = Answers.submit(service, requests)
    try:
        if stream:
            return await EventStream.begin(http_request.receive, _events(answers, writer))
    except BaseException:
        answers.cancel()
        raise
    generations = await gathered(http_request, answers)
    # Log-probabilities of many tokens take long to write, and streams must not wait for them.
    content = await run_in_threadpool(lambda: _json(writer.whole(generations)))
    return Response(content, media_type="application/json")


async def gathered(http_request: HttpRequest, answers: Answers) -> list[Generation]:
    """All that is generated, unless the client goes. Raises ApiError, and ClientDisconnect."""
    try:
        return await while_connected(http_request.receive, answers.wait())
    except BaseException:
        answers.cancel()  # also if the wait had not begun
        raise


async def _events(answers: Answers, writer: Writer) -> AsyncGenerator[str, None]:
    async with aclosing(answers.events()) as events:
        async for index, event in events:
            for chunk in writer.chunks(index, event, answers):
                yield _json(chunk)
    if (last := writer.last_chunk(answers.generations())) is not None:
        yield _json(last)


def _json(model: BaseModel) -> str:
    return model.model_dump_json(exclude_unset=True)

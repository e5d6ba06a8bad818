"""The lines of the output: an answer, or the error that stands in its place."""

from __future__ import annotations

import contextlib
from typing import Any

from adept_fast.server.batch.line import Line
from adept_fast.server.batch.line_error import LineError
from adept_fast.server.batch.origin import BatchOrigin
from adept_fast.system.json_text import json_text

_WITHOUT_ERROR = b'"error": null}'


def plain_answer(origin: BatchOrigin, number: int, custom_id: str | None, fields: dict[str, Any]) -> bytes:
    """The answer to a plain line."""
    return _encoded({"id": origin.id_of(number), "custom_id": custom_id, **fields, "error": None})


def plain_failure(origin: BatchOrigin, number: int, custom_id: str | None, error: LineError) -> bytes:
    """What a plain line gets in place of an answer."""
    head = {"id": origin.id_of(number), "custom_id": custom_id}
    return _encoded({**head, "status_code": error.status, "error": error.error()})


def openai_answer(origin: BatchOrigin, number: int, custom_id: str, body: dict[str, Any]) -> bytes:
    """The answer to a request of OpenAI's API; ``body`` is that of the response."""
    return _encoded(_of_openai(origin, number, custom_id, 200, body, None))


def openai_failure(origin: BatchOrigin, number: int, custom_id: str | None, error: LineError) -> bytes:
    """What a request of OpenAI's API gets in place of an answer, and a line that is no request at all."""
    short = {"code": error.code, "message": str(error)}
    body = {"error": error.error()}
    return _encoded(_of_openai(origin, number, custom_id, error.status, body, short))


def failure(origin: BatchOrigin, number: int, line: Line | None, error: LineError) -> bytes:
    """What a line gets in place of an answer; ``line`` is None if it is no JSON object."""
    custom_id = None
    if line is not None:
        with contextlib.suppress(LineError):
            custom_id = line.custom_id
    is_plain = line is not None and not line.is_of_openai and "prompt" in line.values
    write = plain_failure if is_plain else openai_failure
    return write(origin, number, custom_id, error)


def is_failure(answer: bytes) -> bool:
    """Whether a line of the output says that its request failed."""
    return not answer.endswith(_WITHOUT_ERROR)


def beginning(origin: BatchOrigin, number: int) -> bytes:
    """How the line of the output begins that answers a line of the input."""
    return _encoded({"id": origin.id_of(number)}).removesuffix(b"}") + b","


def _of_openai(
    origin: BatchOrigin,
    number: int,
    custom_id: str | None,
    status: int,
    body: dict[str, Any],
    error: dict[str, Any] | None,
) -> dict[str, Any]:
    response = {"status_code": status, "request_id": f"req_{origin.token_of(number)}", "body": body}
    return {"id": origin.id_of(number), "custom_id": custom_id, "response": response, "error": error}


def _encoded(value: dict[str, Any]) -> bytes:
    return json_text(value).encode("utf-8")

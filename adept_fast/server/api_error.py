"""ApiError: a request that failed, in the form of OpenAI's API: ``{"error": {"message", "type", …}}``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from adept_fast.system.short_text import shortened

CLIENT_GONE = 499  # a status for logs: nobody reads the response

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


class ErrorDetail(BaseModel):
    """What failed, and why."""

    message: str = Field(description="One sentence: the parameter, its value, and the allowed values.")
    type: str = Field(description="The kind of error, such as `invalid_request_error` or `server_error`.")
    param: str | None = Field(description="The parameter, as `messages[0].role`; null if there is none.")
    code: str | None = Field(description="A word for programs, such as `model_not_found`; may be null.")


class ErrorBody(BaseModel):
    """The body of every error, and of the event that ends a stream which failed."""

    error: ErrorDetail


class ApiError(Exception):
    """A request that failed with an HTTP status.

    Args:
        param: the parameter, as the request names it.
        code: a word for programs.
        type: the kind of error; None for that of the status.
        retry_after_seconds: when the request may be repeated.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        type: str | None = None,
        *,
        retry_after_seconds: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.type = type or _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.headers = dict(headers or {})
        if retry_after_seconds is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after_seconds)))

    def body(self) -> ErrorBody:
        """The JSON that describes it."""
        detail = ErrorDetail(message=self.message, type=self.type, param=self.param, code=self.code)
        return ErrorBody(error=detail)

    def response(self) -> JSONResponse:
        return JSONResponse(self.body().model_dump(), self.status, headers=self.headers)


def internal_error() -> ApiError:
    """The error for what went wrong within the server; its traceback is for the log alone."""
    return ApiError(500, "the server failed to answer this request; its log says why")


_DESCRIPTIONS = {
    400: "A parameter is missing, unknown, not supported, or outside its range; `param` names it.",
    401: "The API key is missing or wrong, if the server has any.",
    404: "There is no such model.",
    408: "The body arrived too slowly.",
    413: "The body is too large.",
    415: "The body is not `application/json`.",
    429: "Too many requests wait; the header `Retry-After` has the seconds after which to repeat it.",
    500: "The request failed within the server.",
    503: "The server is starting or stopping.",
    504: "The request took longer than the server allows.",
}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI document's entries for errors."""
    return {
        status: {"model": ErrorBody, "description": _DESCRIPTIONS[status], **_headers(status)}
        for status in statuses
    }


def _headers(status: int) -> dict[str, Any]:
    if status != 429:
        return {}
    seconds = {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
    return {"headers": {"Retry-After": seconds}}


def install(app: FastAPI) -> None:
    """Give all errors of an app this form, those of unknown paths and methods too."""
    app.add_exception_handler(ApiError, _of_api)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(RequestValidationError, _of_validation)
    app.add_exception_handler(ClientDisconnect, _of_disconnect)
    app.add_exception_handler(Exception, _of_server)


async def _of_api(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _of_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if error.status_code in (404, 405):
        message = f"{request.method} {shortened(request.url.path)} is no path and method of this server"
    return ApiError(error.status_code, message, headers=error.headers).response()


async def _of_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"][1:]) or None
    return ApiError(400, f"{param or 'the request'}: {first['msg']}", param).response()


async def _of_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


async def _of_server(request: Request, error: Exception) -> Response:
    return internal_error().response()

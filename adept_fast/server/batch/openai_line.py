"""OpenAILine: a request of OpenAI's API, as its batches have them. Needs what the server needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from adept_fast.engine.runtime import Runtime
from adept_fast.engine.sequence import Generation, Request
from adept_fast.server.api_error import ApiError
from adept_fast.server.batch.answer import openai_answer, openai_failure
from adept_fast.server.batch.line import Line
from adept_fast.server.batch.line_error import LineError
from adept_fast.server.batch.line_task import LineTask
from adept_fast.server.batch.origin import BatchOrigin
from adept_fast.server.openai.body import validated
from adept_fast.server.openai.chat import chat_task
from adept_fast.server.openai.chat_request import ChatRequest
from adept_fast.server.openai.completion_request import CompletionRequest
from adept_fast.server.openai.completions import completion_task
from adept_fast.server.openai.identity import Identity
from adept_fast.server.openai.prompts import Origin
from adept_fast.server.openai.sampling_fields import SamplingFields
from adept_fast.server.openai.task import Task
from adept_fast.server.settings import Settings
from adept_fast.system.short_text import short_repr, shortened

_FIELDS = ("custom_id", "method", "url", "body")
_Make = Callable[[Runtime, Any, Settings, Identity], Task]
_URLS: dict[str, tuple[type[SamplingFields], _Make]] = {
    "/v1/chat/completions": (ChatRequest, chat_task),
    "/v1/completions": (CompletionRequest, completion_task),
}
# How many tokens of a prompt the cache had depends on the lines beside it, and answers do not.
_LEFT_OUT: Any = {"usage": {"prompt_tokens_details"}}


class OpenAILine(LineTask):
    """A body that is answered as the server answers it. Raises LineError."""

    def __init__(self, line: Line, runtime: Runtime, settings: Settings, origin: BatchOrigin) -> None:
        custom_id = line.custom_id
        if custom_id is None:
            raise LineError("custom_id is missing", "custom_id", "missing_required_parameter")
        self._number, self._custom_id, self._origin = line.number, custom_id, origin
        model, make = _URLS[_url(line.values)]
        identity = Identity(origin.token_of(line.number), origin.created)
        try:
            body = validated(line.values.get("body"), model)
            if body.stream:
                raise LineError("stream is True; expected false in a batch", "stream")
            if body.seed is None:
                body = body.model_copy(update={"seed": origin.seed_of(line.number, custom_id)})
            self._task = make(runtime, body, settings, identity)
        except ApiError as error:
            raise _line_error(error) from error
        self._requests = self._task.requests(Origin())

    @property
    def requests(self) -> Sequence[Request]:
        return self._requests

    def answer(self, generations: Sequence[Generation]) -> bytes:
        try:
            whole = self._task.writer.whole(generations)
        except ApiError as error:
            return self.failure(_line_error(error))
        body = whole.model_dump(mode="json", exclude_unset=True, exclude=_LEFT_OUT)
        return openai_answer(self._origin, self._number, self._custom_id, body)

    def failure(self, error: LineError) -> bytes:
        return openai_failure(self._origin, self._number, self._custom_id, error)


def _url(values: dict[str, Any]) -> str:
    """Raises LineError for fields around the body that are missing, unknown or have another value."""
    for name in values:
        if name not in _FIELDS:
            message = f"{shortened(name)} is no field of a request; expected {', '.join(_FIELDS)}"
            raise LineError(message, shortened(name), "unknown_parameter")
    for name in _FIELDS:
        if values.get(name) is None:
            raise LineError(f"{name} is missing", name, "missing_required_parameter")
    for name, allowed in (("method", ("POST",)), ("url", tuple(_URLS))):
        if values[name] not in allowed:
            raise LineError(f"{name} is {short_repr(values[name])}; expected {' or '.join(allowed)}", name)
    return str(values["url"])


def _line_error(error: ApiError) -> LineError:
    return LineError(error.message, error.param, error.code, status=error.status)

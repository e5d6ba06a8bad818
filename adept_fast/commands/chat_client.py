"""A client of OpenAI's chat API, as far as a conversation in a terminal needs it."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from adept_fast.commands.event_stream import EventStreamError, event_data
from adept_fast.system.json_file import parse_json
from adept_fast.system.regular_file import FileError
from adept_fast.system.short_text import short_repr, shortened

CONNECT_SECONDS = 10
SILENCE_SECONDS = 600  # between two pieces of an answer; the first token may take long
MAX_BODY_BYTES = 2**20  # of a response that is no stream

_PORTS = {"http": 80, "https": 443}
_PIECE_BYTES = 2**16
_DONE = "[DONE]"


class ServerError(OSError):
    """A server that cannot be reached, that refuses a request, or whose answer ends before its time.

    ``is_too_long`` says that the conversation is longer than the model's context.
    """

    def __init__(self, message: str, *, is_too_long: bool = False) -> None:
        super().__init__(message)
        self.is_too_long = is_too_long


@dataclass(frozen=True)
class Model:
    """A server's model: its id, and its context in tokens, if the server tells it."""

    name: str
    context: int | None


@dataclass(frozen=True)
class Usage:
    """The tokens of a prompt, and of the answer to it."""

    prompt_tokens: int
    completion_tokens: int


class ChatClient:
    """The chat API of the server at a URL, such as ``http://127.0.0.1:8000``.

    The path of the URL goes before ``/v1``, and may end with it. Redirections are not followed: the API key
    is for this server alone. Raises ValueError for a URL or a key that cannot be one.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        if api_key is not None and not re.fullmatch(r"[!-~]+", api_key):
            raise ValueError("--api-key has characters that no key has; expected printable ASCII")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise _no_server(url) from error
        if parts.username is not None or parts.password is not None:
            raise ValueError("--server has a user name or a password; expected a URL without, and --api-key")
        is_plain = not parts.query and not parts.fragment and re.fullmatch(r"[!-~]*", parts.path)
        if parts.scheme not in _PORTS or not parts.hostname or not is_plain:
            raise _no_server(url)
        self._is_secure = parts.scheme == "https"
        self._address = parts.hostname, port or _PORTS[parts.scheme]
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self._url = f"{parts.scheme}://{parts.netloc}{self._path}"  # its name in errors
        self._key = api_key

    def model(self) -> Model:
        """The server's first model. Raises ServerError."""
        with self._naming(), self._request("GET", "/v1/models") as response:
            models = self._object(self._body(response)).get("data")
        first = models[0] if isinstance(models, list) and models else None
        if not isinstance(first, dict) or not isinstance(first.get("id"), str):
            raise ServerError(f"{self._url} lists no model; expected one in /v1/models")
        return Model(first["id"], _count(first.get("max_model_len")))

    def stream(
        self, model: str, messages: Sequence[Mapping[str, str]], settings: Mapping[str, Any]
    ) -> Generator[str | Usage, None, None]:
        """The pieces of an answer, as they arrive; closing the generator closes the connection.

        Args:
            messages: the conversation, each message with its ``role`` and ``content``.
            settings: other parameters of the request.

        A server that counts tokens has its Usage behind the pieces. Raises ServerError.
        """
        request = {"model": model, "messages": messages, "stream": True, **settings}
        request["stream_options"] = {"include_usage": True}
        with self._naming(), self._request("POST", "/v1/chat/completions", request) as response:
            media_type = response.headers.get_content_type()
            if media_type != "text/event-stream":
                raise ServerError(
                    f"{self._url} answered with {shortened(media_type)}; expected a stream of events"
                )
            for data in event_data(lambda: response.read1(_PIECE_BYTES)):
                if data == _DONE:
                    return
                yield from self._contents(self._object(data.encode()))
        raise ServerError(f"{self._url} closed the connection before the answer was complete")

    @contextmanager
    def _request(self, method: str, path: str, content: object = None) -> Iterator[HTTPResponse]:
        """The response to a request, if it is a success; its connection is closed on leaving the block."""
        headers = {"Accept": "text/event-stream, application/json", "Connection": "close"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        if content is not None:
            headers["Content-Type"] = "application/json"
        kind = HTTPSConnection if self._is_secure else HTTPConnection
        connection = kind(*self._address, timeout=CONNECT_SECONDS)
        try:
            connection.connect()
            connection.sock.settimeout(SILENCE_SECONDS)
            body = None if content is None else json.dumps(content).encode()
            connection.request(method, self._path + path, body, headers)
            with connection.getresponse() as response:  # it holds the socket on its own
                if response.status != 200:
                    raise self._refusal(response)
                yield response
        finally:
            connection.close()

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Errors of the connection, and of what came over it, become a ServerError that names the server."""
        try:
            yield
        except ServerError:
            raise
        except TimeoutError as error:
            raise ServerError(f"{self._url} does not answer in time") from error
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ServerError(f"{self._url} cannot be reached: {reason}") from error
        except HTTPException as error:
            reason = f"{type(error).__name__}: {shortened(str(error))}"
            raise ServerError(f"{self._url} sent what is no HTTP response ({reason})") from error
        except (EventStreamError, FileError) as error:
            raise ServerError(f"the answer of {self._url} {error}") from error

    def _refusal(self, response: HTTPResponse) -> ServerError:
        if 300 <= response.status < 400:
            target = short_repr(response.headers.get("Location"))
            return ServerError(f"{self._url} redirects to {target}, which is not followed")
        if response.status == 401:
            fault = "asks for an API key" if self._key is None else "refuses this API key"
            return ServerError(
                f"{self._url} {fault}; expected --api-key, or ADEPT_FAST_API_KEY, with one of its keys"
            )
        if response.status == 429:
            seconds = shortened(response.headers.get("Retry-After") or "some")
            return ServerError(f"{self._url} has too much to do; it can be asked again in {seconds} seconds")
        try:
            return self._failure(self._object(self._body(response)))
        except (FileError, ServerError):
            return ServerError(f"{self._url} answered with status {response.status}")

    def _failure(self, content: Mapping[str, Any]) -> ServerError:
        """The error that the content of a response, or of an event, has."""
        error = content.get("error")
        message = error.get("message") if isinstance(error, dict) else error
        if not isinstance(message, str):
            raise ServerError(f"{self._url} failed without a message")
        is_too_long = isinstance(error, dict) and error.get("code") == "context_length_exceeded"
        return ServerError(f"{self._url}: {message}", is_too_long=is_too_long)

    def _contents(self, chunk: Mapping[str, Any]) -> Iterator[str | Usage]:
        """The piece of text, and the usage, that a chunk of an answer may have."""
        if "error" in chunk:
            raise self._failure(chunk)
        choices, usage = chunk.get("choices"), chunk.get("usage")
        first = choices[0] if isinstance(choices, list) and choices else None
        delta = first.get("delta") if isinstance(first, dict) else None
        text = delta.get("content") if isinstance(delta, dict) else None
        if isinstance(text, str) and text:
            yield text
        if isinstance(usage, dict):
            prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
            if prompt is not None:
                yield Usage(prompt, completion or 0)

    def _body(self, response: HTTPResponse) -> bytes:
        body = response.read(MAX_BODY_BYTES + 1)
        if len(body) > MAX_BODY_BYTES:
            raise ServerError(f"{self._url} sent more than {MAX_BODY_BYTES} bytes; expected at most that")
        return body

    def _object(self, contents: bytes) -> dict[str, Any]:
        return parse_json(contents, "")


def _no_server(url: str) -> ValueError:
    return ValueError(f"--server is {short_repr(url)}; expected http://HOST:PORT or https://HOST:PORT")


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and value > 0 else None

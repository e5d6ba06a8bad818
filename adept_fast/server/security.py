"""Who may use a server: names of hosts, and API keys."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from adept_fast.server.api_error import ApiError
from adept_fast.system.short_text import short_repr


class HostCheck:
    """Refuses requests whose ``Host`` header has another name than those allowed.

    A server without keys on a loopback address is open to every program of its machine, a browser too. A
    page of a stranger may have its own name resolve to that address, and then counts as of the same origin;
    but the name is in the header.
    """

    def __init__(self, app: ASGIApp, allowed: Iterable[str]) -> None:
        self._app = app
        self._allowed = {_host_name(name) for name in allowed}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = Headers(scope=scope).get("host", "")
            if _host_name(host) not in self._allowed:
                names = ", ".join(sorted(self._allowed))
                error = ApiError(403, f"Host is {short_repr(host)}; expected one of {names}")
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)


class KeyCheck:
    """Refuses requests without one of the keys in ``Authorization: Bearer``, but for some paths.

    ``request.state.cache_scope`` becomes a digest of the key, so that keys share no cached prefixes.

    Args:
        keys: without any, all requests pass, and have the scope "".
        open_paths: paths that need no key.
    """

    def __init__(self, app: ASGIApp, keys: Iterable[str], open_paths: Iterable[str]) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            state = scope.setdefault("state", {})
            state["cache_scope"] = ""
            if self._digests and scope["path"] not in self._open_paths:
                try:
                    state["cache_scope"] = self._checked(Headers(scope=scope).get("authorization"))
                except ApiError as error:
                    await error.response()(scope, receive, send)
                    return
        await self._app(scope, receive, send)

    def _checked(self, authorization: str | None) -> str:
        """The scope of the key in a header. Raises ApiError, which does not repeat it."""
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _unauthorized("no API key; expected the header Authorization: Bearer KEY")
        given = _digest(key.strip().encode("latin-1"))
        # All of them are compared, each in constant time: how long it takes tells nothing about any key.
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        if not any(matches):
            raise _unauthorized("the API key is none of this server's; expected one of them")
        return given.hex()


def _unauthorized(message: str) -> ApiError:
    headers = {"WWW-Authenticate": "Bearer"}
    return ApiError(401, message, code="invalid_api_key", type="authentication_error", headers=headers)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _host_name(host: str) -> str:
    """The name in a Host header: ``localhost:8000`` → ``localhost``, ``[::1]:8000`` → ``::1``."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, _, port = host.rpartition(":")
    return (name if port.isdigit() and ":" not in name else host).removesuffix(".")

"""LocalOnly: refuses requests from other machines."""

from __future__ import annotations

import ipaddress

from starlette.types import ASGIApp, Receive, Scope, Send

from adept_fast.server.api_error import ApiError


class LocalOnly:
    """Answers clients of this machine alone. A server without keys is for them, whatever address Ray has."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_local(scope):
            error = ApiError(
                403,
                "the request is from another machine, and the server has no API keys; "
                "expected api_key_file or no_auth among the arguments of its application",
            )
            await error.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _is_local(scope: Scope) -> bool:
    client = scope.get("client") or ("",)
    try:
        address = ipaddress.ip_address(str(client[0]).partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback

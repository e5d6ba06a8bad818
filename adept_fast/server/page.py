"""The web page at ``/``: a conversation with the model, in a few files of the package."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from importlib import resources

from fastapi import APIRouter, Request, Response

# The whole page: no request reads another file. None needs an API key, which is entered on the page.
_FILES = {
    "/": ("index.html", "text/html"),
    "/page/chat.js": ("chat.js", "text/javascript"),
    "/page/event_stream.js": ("event_stream.js", "text/javascript"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
    "/page/server.js": ("server.js", "text/javascript"),
    "/page/settings.js": ("settings.js", "text/javascript"),
    "/page/storage.js": ("storage.js", "text/javascript"),
    "/page/style.css": ("style.css", "text/css"),
    "/page/text_view.js": ("text_view.js", "text/javascript"),
    "/page/theme.js": ("theme.js", "text/javascript"),
    "/page/turn.js": ("turn.js", "text/javascript"),
}
PATHS = tuple(_FILES)

_HEADERS = {
    # No text of a model can run as a script, send a form, or load anything from another host.
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # a browser asks whether its copy is that of this server's version
}


def router() -> APIRouter:
    """The routes of the page, ``PATHS``. Its files are read now, and not again."""
    routes = APIRouter(include_in_schema=False)
    directory = resources.files("adept_fast.server") / "page"
    for path, (name, media_type) in _FILES.items():
        endpoint = _endpoint((directory / name).read_bytes(), media_type)
        routes.add_api_route(path, endpoint, methods=["GET", "HEAD"])
    return routes


def _endpoint(content: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**_HEADERS, "ETag": etag}

    async def answer(request: Request) -> Response:
        known = request.headers.get("if-none-match", "")
        if any(tag.strip().removeprefix("W/") == etag for tag in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=media_type)

    return answer

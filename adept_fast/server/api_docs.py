"""``/docs``: the OpenAPI document as a page that needs no script and no other host."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

_STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin: 2.5rem 0 0; font-size: 1.1rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 0.25rem 1rem 0.25rem 0; }
td { border-top: 1px solid #8884; }
code { overflow-wrap: anywhere; }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_NAME = re.compile("`([^`]*)`")
_BOUNDS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
_POLICY = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; frame-ancestors 'none'"


def router() -> APIRouter:
    """The route of the page."""
    routes = APIRouter()

    @routes.get("/docs", include_in_schema=False)
    def docs(request: Request) -> HTMLResponse:
        """The routes of this server, their parameters and their responses."""
        return HTMLResponse(_page(request.app.openapi()), headers={"Content-Security-Policy": _POLICY})

    return routes


def _page(document: dict[str, Any]) -> str:
    title = html.escape(f"{document['info']['title']} {document['info']['version']}")
    operations = "".join(
        _operation(document, method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f'<h1>{title}</h1><p>The document for programs: <a href="openapi.json">openapi.json</a></p>'
        f"{operations}</body></html>"
    )


def _operation(document: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> str:
    text = operation.get("description") or operation.get("summary", "")
    parts = [f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{_text(text)}</p>"]
    content = operation.get("requestBody", {}).get("content", {})
    for media_type, body in content.items():
        schema = _resolved(document, body.get("schema", {}))
        rows = [
            (name, _type(document, value), value.get("description", ""))
            for name, value in schema.get("properties", {}).items()
        ]
        parts.append(_table(("parameter", media_type, ""), rows))
    responses = [
        (status, response.get("description", ""), "")
        for status, response in operation.get("responses", {}).items()
    ]
    parts.append(_table(("status", "response", ""), responses))
    return "".join(parts)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    def row(tag: str, cells: tuple[str, ...]) -> str:
        return "<tr>" + "".join(f"<{tag}>{_text(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{row('th', head)}{''.join(row('td', cells) for cells in rows)}</table>"


def _text(text: str) -> str:
    """HTML of a text with names between backticks."""
    return _NAME.sub(r"<code>\1</code>", html.escape(text))


def _resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The schema that a reference within the document names."""
    found: Any = document
    reference = schema.get("$ref", "")
    if not reference.startswith("#/"):
        return schema
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return dict(found)


def _type(document: dict[str, Any], schema: dict[str, Any]) -> str:
    """``integer, from 1, to 16, default 1``, ``string or array of string``; null is what any may be."""
    schema = _resolved(document, schema)
    if "anyOf" in schema:
        names = [_type(document, choice) for choice in schema["anyOf"]]
    elif "enum" in schema or "const" in schema:
        names = [json.dumps(value) for value in schema.get("enum", [schema.get("const")])]
    else:
        types = schema.get("type", "any")
        names = [types] if isinstance(types, str) else list(types)
        names = ["array of " + _type(document, schema.get("items", {})) if n == "array" else n for n in names]
    words = [f"{word} {_number(schema[name])}" for name, word in _BOUNDS.items() if name in schema]
    if schema.get("default") is not None:
        words.append(f"default {json.dumps(schema['default'])}")
    return ", ".join([" or ".join(name for name in names if name not in ("null", "")), *words])


def _number(value: float) -> str:
    """The document has 16 as 16.0."""
    return str(int(value)) if float(value).is_integer() else str(value)

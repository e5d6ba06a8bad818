"""Logs of a server: one line an event on standard error, as text or as JSON."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import sys
import traceback
from typing import Any

from adept_fast.system.short_text import printable

_logger = logging.getLogger("adept_fast.server")
_MAX_FRAMES = 30  # of a traceback, the innermost ones
_FIELDS = "adept_fast_fields"  # the attribute of a record that holds them


def log(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log an event. Fields that are None are left out.

    The caller sees to it that no field holds an API key, or unasked a prompt or an answer.
    """
    _logger.log(level, event, extra={_FIELDS: {k: v for k, v in fields.items() if v is not None}})


def log_failure(event: str, error: BaseException, **fields: object) -> None:
    """Log an error with its traceback, but without its message, which may quote a prompt."""
    frames = traceback.extract_tb(error.__traceback__)[-_MAX_FRAMES:]
    where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    log(event, level=logging.ERROR, error=type(error).__name__, traceback=where, **fields)


def configure_logs(log_format: str) -> None:
    """Have this process log the server's events and other packages' warnings, in one of LOG_FORMATS."""
    root = logging.getLogger()
    _replace_handlers(root, log_format)
    root.setLevel(logging.WARNING)
    _logger.setLevel(logging.INFO)


def configure_own_logs(log_format: str) -> None:
    """Have this process log the server's events, and leave the logs of other packages as they are."""
    _replace_handlers(_logger, log_format)
    _logger.propagate = False
    _logger.setLevel(logging.INFO)


def _replace_handlers(logger: logging.Logger, log_format: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    handler.addFilter(_is_news)
    for other in list(logger.handlers):
        logger.removeHandler(other)
    logger.addHandler(handler)


def _is_news(record: logging.LogRecord) -> bool:
    """Not the tasks that the end of the server cancels, which uvicorn takes for failures."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """What a record says, in the order of its line."""
    time = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc)
    fields: dict[str, Any] = {
        "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "event": record.getMessage(),
    }
    if record.name != _logger.name:
        fields["logger"] = record.name
    if record.exc_info and record.exc_info[1] is not None:
        fields["error"] = type(record.exc_info[1]).__name__
    return fields | getattr(record, _FIELDS, {})


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_fields(record), default=str)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        head = " ".join(printable(str(fields.pop(name))) for name in ("time", "level", "event"))
        return " ".join([head, *(f"{name}={_plain(value)}" for name, value in fields.items())])


def _plain(value: object) -> str:
    """A value that ends where the next field begins."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    is_word = text.isprintable() and not set(text) & set(' "=')
    return text if is_word or not isinstance(value, str) else json.dumps(value)

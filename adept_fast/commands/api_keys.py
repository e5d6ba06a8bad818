"""The API keys of a server, from its options."""

from __future__ import annotations

import os
import re
import stat
from typing import Any

import click

from adept_fast.system.regular_file import RegularFile
from adept_fast.system.text_input import decode_text

MAX_FILE_BYTES = 2**20
MAX_CHARACTERS = 512  # of a key

_COMMENT = re.compile(r"(^|\s)#.*")


def api_keys(options: dict[str, Any]) -> tuple[str, ...]:
    """The keys of ``--api-key`` and ``--api-key-file``.

    Raises click.UsageError for a bad key or a file without any, and FileError; neither shows a key.
    """
    keys = [] if options["api_key"] is None else [_checked(options["api_key"], "--api-key")]
    if options["api_key_file"] is not None:
        keys += _read(options["api_key_file"])
    return tuple(dict.fromkeys(keys))


def is_readable_by_all(path: str) -> bool:
    """Whether every user of this machine can read a file."""
    return bool(os.stat(path).st_mode & stat.S_IROTH)


def _read(path: str) -> list[str]:
    text = decode_text(RegularFile(path).read(MAX_FILE_BYTES), path)
    keys = []
    for number, line in enumerate(text.split("\n"), 1):
        key = _COMMENT.sub("", line).strip()
        if key:
            keys.append(_checked(key, f"{path}: line {number}"))
    if not keys:
        raise click.UsageError(f"{path} has no key; expected one a line")
    return keys


def _checked(key: str, source: str) -> str:
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise click.UsageError(f"{source} is no key; expected printable ASCII characters without spaces")
    if len(key) > MAX_CHARACTERS:
        raise click.UsageError(f"{source} has {len(key)} characters; expected at most {MAX_CHARACTERS}")
    return key

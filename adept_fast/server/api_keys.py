"""The API keys of a server, given or in a file."""

from __future__ import annotations

import os
import re
import stat

from adept_fast.arguments import ParameterError
from adept_fast.system.regular_file import RegularFile
from adept_fast.system.text_input import decode_text

MAX_FILE_BYTES = 2**20
MAX_CHARACTERS = 512  # of a key

_COMMENT = re.compile(r"(^|\s)#.*")


def api_keys(key: str | None, file: str | None, key_source: str) -> tuple[str, ...]:
    """The keys that are given, one as it is, others in a file.

    Args:
        key_source: what ``key`` is called in an error.

    Raises ParameterError for a bad key or a file without any, and FileError; neither shows a key.
    """
    keys = [] if key is None else [_checked(key, key_source)]
    if file is not None:
        keys += _read(file)
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
        raise ParameterError(f"{path} has no key; expected one a line")
    return keys


def _checked(key: str, source: str) -> str:
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ParameterError(f"{source} is no key; expected printable ASCII characters without spaces")
    if len(key) > MAX_CHARACTERS:
        raise ParameterError(f"{source} has {len(key)} characters; expected at most {MAX_CHARACTERS}")
    return key

"""Line: the JSON object of one line of a batch, checked as far as both kinds of lines go."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from adept_fast.choices import SERVER_LIMITS
from adept_fast.server.batch.line_error import LineError
from adept_fast.system.json_file import MAX_BRACKETS, parse_json
from adept_fast.system.regular_file import FileError
from adept_fast.system.short_text import short_repr

MAX_BYTES = int(SERVER_LIMITS["max_body_bytes"].default)  # of a line, as of the body of a request
MAX_ID_CHARACTERS = 512

_OF_OPENAI = {"method", "url", "body"}
# What is expected of a line that does not say how long its answer may be.
_USUAL_TOKENS = 128
_BYTES_OF_A_TOKEN = 4


@dataclass(frozen=True)
class Line:
    """A line's number in the file, from 1, and the fields of its object."""

    number: int
    values: dict[str, Any]

    @classmethod
    def parse(cls, number: int, content: bytes) -> Line:
        """Raises LineError for what is no JSON object, is nested too deeply, or is not text throughout."""
        label = f"line {number}"
        brackets = content.count(b"[") + content.count(b"{")
        if brackets > MAX_BRACKETS:
            raise LineError(
                f"{label} has {brackets} opening brackets and braces; expected at most {MAX_BRACKETS}",
                code="invalid_json",
            )
        try:
            values = parse_json(content, label)
        except FileError as error:
            raise LineError(str(error), code="invalid_json") from error
        if b"\\u" in content and not _is_text(values):
            raise LineError(f"{label} has half of a surrogate pair; expected text", code="invalid_json")
        return cls(number, values)

    @property
    def is_of_openai(self) -> bool:
        """Whether it is a request of OpenAI's API, and no plain prompt."""
        return not _OF_OPENAI.isdisjoint(self.values)

    @property
    def custom_id(self) -> str | None:
        """None if it has none. Raises LineError for one that is no text, or too long."""
        value = self.values.get("custom_id")
        if value is not None and not isinstance(value, str):
            raise LineError(f"custom_id is {short_repr(value)}; expected text", "custom_id")
        if value is not None and not 0 < len(value) <= MAX_ID_CHARACTERS:
            raise LineError(
                f"custom_id has {len(value)} characters; expected 1 to {MAX_ID_CHARACTERS}", "custom_id"
            )
        return value

    def expected_tokens(self, size: int) -> int:
        """About how many tokens it takes to answer a line of ``size`` bytes; any number for a wrong line."""
        body = self.values.get("body") if self.is_of_openai else self.values
        if not isinstance(body, dict):
            return 0
        limits = [body.get(name) for name in ("max_new_tokens", "max_tokens", "max_completion_tokens")]
        known = [limit for limit in limits if isinstance(limit, int) and 0 <= limit < 2**31]
        return size // _BYTES_OF_A_TOKEN + (known[0] if known else _USUAL_TOKENS)


def _is_text(values: dict[str, Any]) -> bool:
    try:
        json.dumps(values, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True

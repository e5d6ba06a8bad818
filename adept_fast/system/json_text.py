"""JSON as text: on one line, and valid for every reader."""

from __future__ import annotations

import json
import math
from typing import Any


def json_text(value: Any, *, ascii_only: bool = False) -> str:
    """The value on one line of JSON; numbers that are not finite are null."""
    return json.dumps(_finite(value), ensure_ascii=ascii_only, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, (list, tuple)) else value

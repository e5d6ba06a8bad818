"""Identity: what tells a response from others of the same words."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass


@dataclass(frozen=True)
class Identity:
    """The part of a response's id after its kind, and when it was created, in seconds since 1970."""

    token: str
    created: int

    @classmethod
    def new(cls) -> Identity:
        """One that no other response has."""
        return cls(uuid.uuid4().hex, int(time.time()))

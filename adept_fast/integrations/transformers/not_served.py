"""NotServedError: what the runtime does not do, in words."""

from __future__ import annotations


class NotServedError(ValueError):
    """A model, or a call of ``generate``, that the runtime does not serve; the message says what of it."""

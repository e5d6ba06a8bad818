"""NotServedError: the model or the call is not supported."""

from __future__ import annotations


class NotServedError(ValueError):
    """A model, or a call of ``generate``, that the runtime does not support; the message is the reason."""

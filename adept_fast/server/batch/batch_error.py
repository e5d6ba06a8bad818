"""BatchError: a batch that cannot begin, go on, or end."""

from __future__ import annotations


class BatchError(ValueError):
    """One sentence that names the file, what was found, and what is expected."""

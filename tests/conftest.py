"""What many tests share."""

from __future__ import annotations

import pytest

from adept_fast import Runtime


@pytest.fixture(scope="session")
def demo() -> Runtime:
    """The shipped checkpoint, with room for a batch."""
    return Runtime.load("demo", max_batch_size=4, progress=False)

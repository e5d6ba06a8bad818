"""What many tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from adept_fast import Runtime


@pytest.fixture(scope="session")
def demo() -> Runtime:
    """The shipped checkpoint, with room for a batch."""
    return Runtime.load("demo", max_batch_size=4, progress=False)


# They run programs, compare with transformers, or call kernels with many shapes.
SLOW_FOLDERS = {"benchmarks", "integrations", "operators"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if SLOW_FOLDERS & set(item.path.relative_to(Path(__file__).parent).parts):
            item.add_marker("slow")

"""What many tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from adept_fast import Runtime

if TYPE_CHECKING:
    from cuda_place import Place


@pytest.fixture
def device_memory(place: Place) -> Iterator[None]:
    """Asked for by ``every_place``."""
    with place.memory():
        yield


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

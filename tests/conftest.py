"""What many tests share."""

from __future__ import annotations

import builtins
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # the process that hands out tests to others needs no torch
    from adept_fast import Runtime

TESTS = Path(__file__).parent
OWN_PRINT = builtins.print


@pytest.fixture(scope="session")
def demo() -> Runtime:
    """The shipped checkpoint, with room for a batch."""
    from adept_fast import Runtime

    return Runtime.load("demo", max_batch_size=4, progress=False)


@pytest.fixture(autouse=True)
def _own_print() -> Iterator[None]:
    """Ray replaces the function by its own in a process that has a driver."""
    yield
    builtins.print = OWN_PRINT


# They run programs, compare with transformers, or call kernels with many shapes.
SLOW_FOLDERS = {"benchmarks", "integrations", "operators"}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """What these import is not imported either where their tests are left out."""
    is_slow = collection_path.parent == TESTS and collection_path.name in SLOW_FOLDERS
    return True if is_slow and config.option.markexpr == "not slow" else None


def pytest_collection_finish() -> None:
    """What was imported stays, so that tests that collect garbage need not wait for a look at all of it."""
    gc.freeze()


# None of their files takes long, so processes that share the tests come to the end together.
LAST_FOLDERS = {"checkpoint", "memory"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if SLOW_FOLDERS & set(item.path.relative_to(TESTS).parts):
            item.add_marker("slow")
    items.sort(key=lambda item: item.path.parent.name in LAST_FOLDERS)

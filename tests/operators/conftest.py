"""The backend that a test of operators runs on, and what a failure tells of the call."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import backends
import pytest
import torch
from backends import Backend


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: runs on the GPU of this machine")


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    with request.param.running():
        yield request.param


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers for every test."""
    torch.manual_seed(0)
    backends.last_call = ""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and backends.last_call:
        report.sections.append(("the operator's last call", backends.last_call))
    return report


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test of backends that are not run is none, and nothing was skipped."""

    def has_no_backend(item: pytest.Item) -> bool:
        return any(
            "empty parameter set" in mark.kwargs.get("reason", "") for mark in item.iter_markers("skip")
        )

    without = [item for item in items if has_no_backend(item)]
    if without:
        config.hook.pytest_deselected(items=without)
        items[:] = [item for item in items if item not in without]

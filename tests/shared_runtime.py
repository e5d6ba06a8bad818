"""Fixtures: one small Runtime for a file of tests, in which no request is left when a test has ended."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from thread_calls import ids

from adept_fast import Runtime


@pytest.fixture(scope="module", autouse=True)
def one_thread_a_call() -> Iterator[None]:
    """Else every thread of a test would have as many of its own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def loaded() -> Runtime:
    return Runtime.load(
        "demo", device="cpu", weights="int8", max_seq_len=128, max_batch_size=2, progress=False
    )


@pytest.fixture
def runtime(loaded: Runtime) -> Iterator[Runtime]:
    """No request is left when a test has ended."""
    yield loaded
    gc.collect()
    ids(loaded)
    assert loaded.engine._scheduler.sequences() == ()

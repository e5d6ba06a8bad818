"""Fixtures: a server of the demo for a file of tests, its client, and a Runtime to compare it with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from openai import OpenAI
from serving import RunningServer, running_server, wait_until

from adept_fast import Runtime
from adept_fast.server.settings import Settings

SETTINGS = Settings(model_name="demo", max_choices=4, max_prompts=3, max_stops=2, max_stop_characters=8)


@pytest.fixture(scope="module", autouse=True)
def one_thread_a_call() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def demo(max_batch_size: int) -> Runtime:
    return Runtime.load(
        "demo", device="cpu", weights="int8", max_batch_size=max_batch_size, max_seq_len=256, progress=False
    )


@pytest.fixture(scope="module")
def alone() -> Runtime:
    """Generates one text at a time, without a server."""
    return demo(1)


@pytest.fixture(scope="module")
def started() -> Iterator[RunningServer]:
    with running_server(demo(2), SETTINGS) as server:
        yield server


@pytest.fixture
def server(started: RunningServer) -> Iterator[RunningServer]:
    """No request is left when a test has ended."""
    yield started
    started.gate.open()
    wait_until(lambda: started.is_idle)


@pytest.fixture
def client(server: RunningServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client

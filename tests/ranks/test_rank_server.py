"""``adept-fast serve --tensor-parallel``, and how it ends."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from server_process import ServerProcess, completion

from adept_fast import Runtime

pytestmark = pytest.mark.slow

ARGUMENTS = ("--checkpoint", "demo", "--tensor-parallel", "2")


def children_of(process_id: int) -> list[int]:
    tasks = Path(f"/proc/{process_id}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text(encoding="utf-8").split()]


def has_ended(process_id: int) -> bool:
    return not Path(f"/proc/{process_id}").exists()


def test_answers_are_those_of_one_rank_and_a_signal_ends_all() -> None:
    body = completion(12, temperature=0)
    expected = Runtime.load("demo", progress=False).generate(str(body["prompt"]), max_new_tokens=12).text
    with ServerProcess(*ARGUMENTS) as server, server.client() as client:
        (rank,) = children_of(server.process_id)
        answer = client.post("/v1/completions", json=body).json()
        assert answer["choices"][0]["text"] == expected
        server.signal(signal.SIGTERM)
        assert server.exit_code() == 0
        assert has_ended(rank)


@pytest.mark.parametrize("is_idle", [True, False])
def test_a_rank_that_ends_ends_the_server(is_idle: bool) -> None:
    with ServerProcess(*ARGUMENTS) as server, server.client() as client:
        (rank,) = children_of(server.process_id)
        if is_idle:
            os.kill(rank, signal.SIGKILL)
        else:
            with client.stream("POST", "/v1/completions", json=completion(400, stream=True)) as response:
                lines = response.iter_lines()
                next(lines)
                os.kill(rank, signal.SIGKILL)
                assert any('"error"' in line for line in lines)
        assert server.exit_code() == 1
        assert (
            f"error: the engine failed: rank 1 (process {rank}) was ended by SIGKILL while "
            in server.stderr()
        )

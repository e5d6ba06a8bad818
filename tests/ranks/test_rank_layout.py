"""Where ranks are put, and who may join them."""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_huggingface
from click.testing import CliRunner

from adept_fast import __version__
from adept_fast.arguments import ParameterError
from adept_fast.checkpoint import open_checkpoint
from adept_fast.commands.cli import main
from adept_fast.config import PersimmonConfig
from adept_fast.engine.ranks import launch, processes
from adept_fast.engine.ranks.connection import Connection, ConnectionEndedError
from adept_fast.engine.ranks.layout import RankLayout, choose_layout
from adept_fast.engine.ranks.loading import plan_rank
from adept_fast.engine.ranks.meeting import COMMANDS, LIFE, Meeting
from adept_fast.engine.ranks.watch import RankError
from adept_fast.memory.advice import plan_memory

EIGHT = PersimmonConfig(num_attention_heads=64)


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("device", "gpus", "expected"),
    [
        ("auto", 0, ["cpu"] * 4),
        ("cpu", 8, ["cpu"] * 4),
        ("auto", 8, ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        ("cuda", 4, ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        ("cuda:1", 2, ["cuda:1"] * 4),
    ],
)
def test_devices_of_ranks(
    device: str, gpus: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch, gpus)
    layout = choose_layout(EIGHT, 4, device)
    assert [str(layout.device_of(rank)) for rank in range(4)] == expected
    is_shared = len(set(expected)) == 1
    assert layout.is_shared is is_shared
    assert layout.cuda_graphs("required" if not is_shared else "auto") == ("off" if is_shared else "required")


@pytest.mark.parametrize(
    ("count", "device", "graphs", "message"),
    [
        (
            2,
            "cuda",
            "auto",
            "tensor_parallel is 2, and this torch sees 1 CUDA devices; expected one for each rank",
        ),
        (2, "auto", "auto", "or device 'cuda:0' to have all ranks share that one"),
        (
            2,
            "cuda:0",
            "required",
            "cuda_graphs is 'required'; expected auto or off for several ranks on one GPU",
        ),
        (
            3,
            "cpu",
            "auto",
            "tensor_parallel is 3; expected 1 or 2 or 4 or 8 or 16 or 32 or 64, as the model has 64",
        ),
    ],
)
def test_refusals(
    count: int, device: str, graphs: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch, 1)
    with pytest.raises(ParameterError, match=message):
        choose_layout(EIGHT, count, device, graphs)


def test_ranks_of_torchrun_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    started = processes.Launched(0, 4)
    with pytest.raises(
        ParameterError, match="tensor_parallel is 2; expected 4, the ranks that torchrun has started"
    ):
        processes.check_launch(started, 2, {})
    with pytest.raises(ParameterError, match="on several machines; expected all ranks on one"):
        processes.check_launch(started, 4, {"LOCAL_WORLD_SIZE": "2"})
    processes.check_launch(started, 4, {"LOCAL_WORLD_SIZE": "4"})
    monkeypatch.setattr(launch, "launched", lambda: started)
    assert launch.check_ranks(4) == 4
    assert launch.check_ranks(1) == 1  # a model of its own in each process


def test_plans_of_the_parts(tmp_path: Path) -> None:
    """Together the ranks hold the weights and the cache of one; each plans with its share of the memory."""
    config = small_config()
    checkpoint = open_checkpoint(
        write_huggingface(tmp_path, config, random_tensors(config), demo_tokenizer())
    )
    whole, parts = (
        [
            plan_memory(
                plan_rank(checkpoint, RankLayout(n, torch.device("cpu"), True), rank, max_seq_len=64).request
            )
            for rank in range(n)
        ]
        for n in (1, 4)
    )
    assert sum(part.cache_bytes for part in parts) == whole[0].cache_bytes
    norms = 4 * 3 * sum(size[0] for name, size in config.tensor_shapes().items() if "norm" in name)
    biases = 4 * 3 * 2 * config.num_hidden_layers * config.hidden_size
    assert sum(part.weights_bytes for part in parts) == whole[0].weights_bytes + norms + biases
    assert parts[0].available_bytes < whole[0].available_bytes // 3


@pytest.mark.parametrize("options", [[], ["--gpu-memory", "80GB"]])
def test_info_shows_ranks(options: list[str]) -> None:
    done = CliRunner().invoke(main, ["info", "--json", "--tensor-parallel", "2", *options])
    assert done.exit_code == 0, done.output
    report = json.loads(done.output)
    where = (
        "cuda:0 to cuda:1 (they exchange by NCCL)"
        if options
        else "(they exchange through memory of the host)"
    )
    assert report["placement"]["ranks"].startswith("2, ")
    assert report["placement"]["ranks"].endswith(where)
    assert report["memory"]["of each rank"].startswith("2 of 4 heads, 512 of 1024 neurons, 2048 of 4096 rows")
    refused = CliRunner().invoke(main, ["info", "--tensor-parallel", "3", *options])
    assert refused.exit_code == 1
    assert "tensor_parallel is 3; expected 1 or 2 or 4, as the model has 4 heads" in refused.output


def joining(meeting: Meeting, *message: Any) -> socket.socket:
    end = socket.socket(socket.AF_UNIX)
    end.connect(str(meeting.directory / "socket"))
    Connection(end).send(*message)
    return end


def test_a_meeting_is_private_and_leaves_nothing() -> None:
    meeting = Meeting(2)
    assert stat.S_IMODE(meeting.directory.stat().st_mode) == 0o700
    meeting.close()
    assert not meeting.directory.exists()
    meeting.memory[0] = 1  # which outlives its file


def test_a_meeting_takes_the_ranks_alone() -> None:
    meeting, process_id = Meeting(2), os.getpid()
    wrong: list[tuple[Any, ...]] = [
        (__version__, 0, LIFE, process_id),
        (__version__, 2, LIFE, process_id),
        (__version__, 1, "else", process_id),
        (__version__, "1", LIFE, process_id),
        (__version__, 1, LIFE, "me"),
        ("too few",),
    ]
    ends = [joining(meeting, *message) for message in wrong]
    garbage = socket.socket(socket.AF_UNIX)
    garbage.connect(str(meeting.directory / "socket"))
    garbage.sendall(struct.pack("<I", 2**31) + b"x")
    ends += [joining(meeting, __version__, 1, purpose, process_id) for purpose in (COMMANDS, LIFE)]
    found = meeting.accept(lambda: None)
    assert set(found) == {(1, COMMANDS), (1, LIFE)}
    assert {process for _, process in found.values()} == {process_id}
    for end in ends[: len(wrong)]:
        assert end.recv(1) == b""
    meeting.close()


def test_another_version_is_refused() -> None:
    meeting = Meeting(2)
    end = joining(meeting, "0.0.0", 1, LIFE, 1)
    with pytest.raises(
        RankError, match=f"rank 1 runs adept-fast '0.0.0'; expected {__version__}, as rank 0 does"
    ):
        meeting.accept(lambda: None)
    end.close()
    meeting.close()


@pytest.mark.parametrize(
    "contents",
    [b"", b"\x01", struct.pack("<I", 5) + b"[1", struct.pack("<I", 1) + b"{", struct.pack("<I", 2) + b"[]"],
)
def test_what_is_no_message_ends_a_connection(contents: bytes) -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(contents)
    theirs.close()
    with pytest.raises(ConnectionEndedError):
        Connection(ours).receive()


def test_messages_of_any_size_arrive() -> None:
    ours, theirs = socket.socketpair()
    sent = [["prefill", [[0, 0, list(range(size))]]] for size in (0, 1, 512, 100_000)]
    thread = threading.Thread(target=lambda: [Connection(theirs).send(*message) for message in sent])
    thread.start()
    assert [Connection(ours).receive() for _ in sent] == sent
    thread.join()

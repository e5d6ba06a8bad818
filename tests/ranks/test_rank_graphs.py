"""Captured steps on several ranks: each captures its own, exchanges included, and all replay together."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_huggingface
from fake_graph import FakeCapture
from rank_threads import part_of
from torch import Tensor

from adept_fast import Runtime, SamplingParams
from adept_fast.checkpoint import open_checkpoint
from adept_fast.engine.engine import Engine
from adept_fast.engine.graphs import LaunchPolicy
from adept_fast.engine.ranks.following_runner import FollowingRunner
from adept_fast.engine.ranks.leading_runner import LeadingRunner
from adept_fast.engine.sequence import Request
from adept_fast.memory.graph_buckets import GraphBuckets
from adept_fast.ops.process_group import GroupRanks

CONTEXT, SLOTS, ROWS = 96, 3, 16
SECONDS = 60  # that nothing takes

_here = threading.local()  # the group of this thread's rank


class Exchange:
    """The memory of a group of threads."""

    def __init__(self, count: int) -> None:
        self.parts: list[Tensor | None] = [None] * count
        self.barrier = threading.Barrier(count, timeout=SECONDS)


class ThreadGroup:
    """A process group whose all-gather is an operator, as NCCL's is a kernel: a capture records it."""

    def __init__(self, exchange: Exchange, rank: int) -> None:
        self.exchange, self._rank = exchange, rank
        _here.group = self

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return len(self.exchange.parts)

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor]) -> ThreadGroup:
        torch.ops.adept_fast_tests.allgather(outputs[0], inputs[0])
        return self

    def wait(self) -> None:
        pass


@torch.library.custom_op("adept_fast_tests::allgather", mutates_args={"outputs"})
def allgather(outputs: list[Tensor], own: Tensor) -> None:
    group: ThreadGroup = _here.group
    group.exchange.parts[group.rank()] = own.clone()
    group.exchange.barrier.wait()
    for out, part in zip(outputs, group.exchange.parts, strict=True):
        assert part is not None
        out.copy_(part)
    group.exchange.barrier.wait()


class ThreadTeam:
    """A Team whose other ranks are threads that take commands from queues."""

    def __init__(self, count: int) -> None:
        self.queues: list[queue.Queue[tuple[Any, ...]]] = [queue.Queue() for _ in range(count - 1)]
        self.names: list[str] = []

    def check(self) -> None:
        pass

    @contextlib.contextmanager
    def command(self, activity: str, *command: Any) -> Iterator[None]:
        assert activity
        self.names.append(command[0])
        for commands in self.queues:
            commands.put(command)
        yield


def policy() -> LaunchPolicy:
    return LaunchPolicy(GraphBuckets.few(ROWS, CONTEXT), 2, FakeCapture(), required=True)


def follow(path: Path, exchange: Exchange, rank: int, commands: queue.Queue[tuple[Any, ...]]) -> None:
    ranks = GroupRanks(ThreadGroup(exchange, rank))
    model, cache = part_of(open_checkpoint(path), ranks, max_seq_len=CONTEXT, max_batch_size=SLOTS)
    runner = FollowingRunner(model, cache, policy())
    with torch.inference_mode():
        while (command := commands.get(timeout=SECONDS))[0] != "close":
            getattr(runner, command[0])(*command[1:])


@pytest.mark.parametrize("count", [2, 4])
def test_texts_of_captured_steps(tmp_path: Path, count: int) -> None:
    config = small_config(vocab_size=4096)
    path = write_huggingface(tmp_path, config, random_tensors(config), demo_tokenizer())
    prompts = [[5, 9, 4001], [3] * 30, [7, 8, 3000, 11], [42]]
    params = [
        SamplingParams(
            max_new_tokens=9 + at, temperature=0.7 * (at % 2), seed=at, ignore_eos=True, logprobs=1
        )
        for at in range(len(prompts))
    ]
    one = Runtime.load(path, progress=False, max_seq_len=CONTEXT)
    expected = [text.token_ids for text in one.generate(prompts, params)]
    exchange, team = Exchange(count), ThreadTeam(count)
    followers = [
        threading.Thread(target=follow, args=(path, exchange, rank, commands), daemon=True)
        for rank, commands in enumerate(team.queues, start=1)
    ]
    for follower in followers:
        follower.start()
    ranks = GroupRanks(ThreadGroup(exchange, 0))
    model, cache = part_of(open_checkpoint(path), ranks, max_seq_len=CONTEXT, max_batch_size=SLOTS)
    runner = LeadingRunner(team, model, cache, one.tokenizer.vocab_size, policy())  # type: ignore[arg-type]
    engine = Engine(runner, one.tokenizer)
    handles = engine.submit_all([Request(ids, chosen) for ids, chosen in zip(prompts, params, strict=True)])
    for handle in handles:
        handle.wait()
    assert runner.captures() is not None
    engine.warmup()  # captures the other shapes; the double's capture runs a step, so it comes last
    for commands in team.queues:
        commands.put(("close",))
    for follower in followers:
        follower.join(SECONDS)
        assert not follower.is_alive()
    assert [handle.sequence.token_ids for handle in handles] == expected
    report = runner.captures()
    assert report is not None
    assert report.failure is None
    assert {"capture_steps", "decode_first_token", "launch_step", "logits", "prefill"} == set(team.names)

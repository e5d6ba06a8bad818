"""The ranks of a model as threads of this process, each with its part."""

from __future__ import annotations

import mmap
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from adept_fast.checkpoint import Checkpoint
from adept_fast.engine.loading import load_model
from adept_fast.engine.ranks.layout import RankLayout
from adept_fast.engine.ranks.loading import plan_rank
from adept_fast.kv_cache import StaticKVCache
from adept_fast.memory.advice import plan_memory
from adept_fast.model import Persimmon
from adept_fast.ops.ranks import ONE_RANK, Ranks
from adept_fast.ops.shared_memory import SharedMemoryRanks, memory_bytes

Result = TypeVar("Result")

CPU = torch.device("cpu")


def on_ranks(count: int, work: Callable[[Ranks], Result]) -> list[Result]:
    """What each of ``count`` ranks gets from ``work``; the first error of one."""
    memory = mmap.mmap(-1, memory_bytes(count))
    results: dict[int, Result] = {}
    errors: list[BaseException] = []

    def check(rank: int, seconds: float) -> None:
        if errors:
            raise RuntimeError("another rank has failed")

    def run(rank: int) -> None:
        try:
            with torch.inference_mode():
                results[rank] = work(SharedMemoryRanks(rank, count, memory, check))
        except BaseException as error:  # noqa: BLE001 (raised below)
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # processes that wait for each other do not hold each other's interpreter
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(count)]


def part_of(checkpoint: Checkpoint, ranks: Ranks, **settings: Any) -> tuple[Persimmon, StaticKVCache]:
    """A rank's part of a model, and its cache."""
    settings = {"max_seq_len": 64, "max_batch_size": 4} | settings
    own = plan_rank(checkpoint, RankLayout(ranks.count, CPU, is_shared=True), ranks.rank, **settings)
    return load_model(own.checkpoint, own.placement, plan_memory(own.request), progress=False, ranks=ranks)


def parallel(
    checkpoint: Checkpoint, count: int, use: Callable[[Persimmon, StaticKVCache], Result], **settings: Any
) -> Result:
    """What ``use`` returns on the first of ``count`` ranks; all call it with their parts."""
    if count == 1:
        with torch.inference_mode():
            return use(*part_of(checkpoint, ONE_RANK, **settings))
    return on_ranks(count, lambda ranks: use(*part_of(checkpoint, ranks, **settings)))[0]


def tokens(ids: Sequence[int]) -> torch.Tensor:
    return torch.tensor(ids, dtype=torch.int64)

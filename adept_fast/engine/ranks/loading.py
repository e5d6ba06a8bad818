"""Loads the parts of a model: on the first rank as ``Runtime.load`` asks, on the others as that tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from mmap import mmap
from pathlib import Path
from typing import Any

import torch

from adept_fast.checkpoint import Checkpoint, dtype_name, open_checkpoint
from adept_fast.checkpoint.shares import Share, rank_checkpoint
from adept_fast.engine.graphs import LaunchPolicy
from adept_fast.engine.loading import load_model, request_memory
from adept_fast.engine.placement import Placement
from adept_fast.engine.ranks.following_runner import FollowingRunner
from adept_fast.engine.ranks.layout import RankLayout, choose_layout
from adept_fast.engine.ranks.meeting import Place
from adept_fast.engine.ranks.team import Team
from adept_fast.kv_cache import StaticKVCache
from adept_fast.memory.advice import plan_memory
from adept_fast.memory.plan import MemoryPlan, MemoryRequest
from adept_fast.memory.workspace import max_rows
from adept_fast.model import Persimmon
from adept_fast.ops.process_group import GroupRanks, nccl_group
from adept_fast.ops.ranks import Ranks
from adept_fast.ops.shared_memory import SharedMemoryRanks


@dataclass(frozen=True)
class RankPlan:
    """The part of one rank: its checkpoint, where it is put, and the request for its memory."""

    checkpoint: Checkpoint
    placement: Placement
    request: MemoryRequest


def plan_rank(checkpoint: Checkpoint, layout: RankLayout, rank: int, **settings: Any) -> RankPlan:
    """The part of a rank, with the settings of ``request_memory`` but for the device."""
    device = layout.device_of(rank)
    placement, _ = request_memory(checkpoint, device=device, **settings)
    part = rank_checkpoint(checkpoint, Share(checkpoint.config, rank, layout.count), placement.weights)
    chosen = settings | {"dtype": placement.dtype}
    sharing = layout.count if layout.is_shared else 1
    own, request = request_memory(part, device=device, sharing_ranks=sharing, **chosen)
    return RankPlan(part, replace(own, dtype_reason=placement.dtype_reason), request)


@dataclass(frozen=True)
class Loaded:
    """The first rank's part of a model, or all of it if ``team`` is None."""

    model: Persimmon
    cache: StaticKVCache
    plan: MemoryPlan
    placement: Placement
    cuda_graphs: str
    team: Team | None = None


def load_ranks(
    checkpoint: Checkpoint,
    count: int,
    settings: dict[str, Any],
    cuda_graphs: str,
    *,
    progress: bool,
    **flags: bool,
) -> Loaded:
    """Load a model; if ``count`` is above 1, start as many ranks but one, or under torchrun await them.

    Args:
        settings: of ``request_memory``.
        flags: of ``load_model``.

    Raises the errors of ``Runtime.load``, of any rank, and RankError if one ends.
    """
    options: dict[str, Any] = {"progress": progress, **flags}
    if count == 1:
        placement, request = request_memory(checkpoint, **settings)
        plan = plan_memory(request)
        model, cache = load_model(checkpoint, placement, plan, **options)
        return Loaded(model, cache, plan, placement, cuda_graphs)
    layout = choose_layout(checkpoint.config, count, settings["device"], cuda_graphs)
    graphs = layout.cuda_graphs(cuda_graphs)
    own = plan_rank(checkpoint, layout, 0, **{k: v for k, v in settings.items() if k != "device"})
    plan = plan_memory(own.request)
    told = settings | {
        "dtype": dtype_name(own.placement.dtype),
        "cache_dtype": dtype_name(own.placement.cache_dtype),
        "weight_layout": own.placement.layout if own.placement.device.type == "cuda" else "auto",
        "embedding": plan.embedding,
        "max_seq_len": plan.max_seq_len,
    }
    told.pop("device")
    team = Team(count)
    try:
        team.gather(
            {
                "path": str(checkpoint.path),
                "mmap": checkpoint.mmap,
                "device": str(layout.device),
                "is_shared": layout.is_shared,
                "threads": layout.threads,
                "cuda_graphs": graphs,
                "flags": flags,
                "settings": told,
            }
        )
        team.on_close.append(partial(torch.set_num_threads, torch.get_num_threads()))
        torch.set_num_threads(layout.threads)
        ranks = _ranks(layout, 0, team.memory, team.store, team.check_wait)
        if isinstance(ranks, GroupRanks):
            team.watch.on_failure.append(ranks.abort)
        model, cache = load_model(own.checkpoint, own.placement, plan, ranks=ranks, **options)
        team.await_ready()
    except BaseException as error:
        team.abandon(error)
        raise
    return Loaded(model, cache, plan, own.placement, graphs, team)


def load_follower(place: Place, told: dict[str, Any], check: Callable[[int, float], None]) -> FollowingRunner:
    """The part of another rank than the first, as that told."""
    rank, count = told["rank"], told["count"]
    torch.set_num_threads(told["threads"])
    layout = RankLayout(count, torch.device(told["device"]), told["is_shared"])
    checkpoint = open_checkpoint(Path(told["path"]), mmap=told["mmap"])
    own = plan_rank(checkpoint, layout, rank, **told["settings"])
    plan = plan_memory(own.request)
    ranks = _ranks(layout, rank, place.memory, place.store, check)
    model, cache = load_model(
        own.checkpoint, own.placement, plan, progress=False, ranks=ranks, **told["flags"]
    )
    rows = max_rows(cache.max_batch_size)
    policy = LaunchPolicy.on(model.device, rows, cache.max_seq_len, told["cuda_graphs"])
    return FollowingRunner(model, cache, policy)


def _ranks(
    layout: RankLayout, rank: int, memory: mmap, store: Path, check: Callable[[int, float], None]
) -> Ranks:
    if layout.is_shared:
        return SharedMemoryRanks(rank, layout.count, memory, check)
    return GroupRanks(nccl_group(store, rank, layout.count, layout.device_of(rank)))

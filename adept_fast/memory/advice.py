"""Planning memory before anything is allocated, and saying what fits where something does not."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from adept_fast.memory.plan import (
    MemoryPlan,
    MemoryRequest,
    lay_out,
    most,
    pinned_bytes,
    place_of_embedding,
)
from adept_fast.system.byte_counts import format_bytes, format_together
from adept_fast.system.cgroup_memory import cgroup_room

__all__ = [
    "InsufficientMemoryError",
    "MemoryPlan",
    "MemoryRequest",
    "available_bytes",
    "explaining_out_of_memory",
    "format_bytes",
    "format_together",
    "is_out_of_memory",
    "out_of_memory",
    "plan_memory",
]

_CONTEXT_STEP = 64  # a context that is chosen to fit is a multiple of this many tokens


class InsufficientMemoryError(ValueError):
    """What was asked for does not fit on the device; the sentence names a setting with which it does."""


def plan_memory(request: MemoryRequest) -> MemoryPlan:
    """Lay out weights, working memory and cache.

    Raises InsufficientMemoryError when it does not fit, saying what would.
    """
    embedding = place_of_embedding(request)
    longest = request.longest_context(embedding)
    chosen = request.max_seq_len
    if chosen is None:
        is_whole = longest == request.config.max_position_embeddings
        chosen = longest if is_whole else longest // _CONTEXT_STEP * _CONTEXT_STEP
    plan = replace(lay_out(request, chosen or _least(request), embedding), longest_context=longest)
    if not 1 <= chosen <= longest:
        free, needed = format_together(plan.available_bytes, plan.peak_bytes)
        raise InsufficientMemoryError(
            f"{plan.device} has {free} free, and {needed} are needed; {_demand(plan)}: {_advice(plan)}"
        )
    return plan


def out_of_memory(
    plan: MemoryPlan, during: str = "capturing a decode graph", *, held_bytes: int | None = None
) -> InsufficientMemoryError:
    """The error to raise where memory ran out all the same: what was planned, what is free, and what fits.

    ``held_bytes`` is what the plan's weights and cache hold at this moment; None for all of it.
    """
    device = plan.request.device
    free = available_bytes(device)
    held = plan.weights_bytes + plan.cache_bytes if held_bytes is None else held_bytes
    room = free + held
    if room >= plan.peak_bytes:  # the plan was too low, so what is advised leaves a twentieth
        room = plan.peak_bytes - plan.peak_bytes // 20
    short = replace(plan.request, available_bytes=room, max_seq_len=plan.max_seq_len)
    free_now, planned = format_together(free, plan.peak_bytes)
    return InsufficientMemoryError(
        f"{plan.device} ran out of memory while {during}, with {free_now} free now, and {planned} planned; "
        f"{_demand(plan)}: {_advice(replace(plan, request=short))}"
    )


@contextmanager
def explaining_out_of_memory(
    plan: MemoryPlan, during: str, *, held_bytes: int | None = None
) -> Iterator[None]:
    """Turn what torch raises where memory runs out into what ``out_of_memory`` makes of it.

    What the calls inside had allocated is let go of first, so that it counts as free.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)
        raise out_of_memory(plan, during, held_bytes=held_bytes) from error


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says that there was no memory: of a GPU, of the host for it, or of a CPU."""
    says = str(error)
    of_driver = isinstance(error, torch.AcceleratorError) and "out of memory" in says
    return isinstance(error, torch.OutOfMemoryError) or of_driver or "can't allocate memory" in says


def available_bytes(device: torch.device) -> int:
    """How much a device can still hold: free GPU memory and what torch keeps of it unused, or what the system
    and the memory limits of control groups can give without swapping."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    room = cgroup_room()
    free = _free_on_host()
    return free if room is None else min(free, room)


def _free_on_host() -> int:
    """What the system can give without swapping, whatever limits there are."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _demand(plan: MemoryPlan) -> str:
    """``the weights take …, and a cache of …``."""
    weights, moving = f"the weights take {format_bytes(plan.weights_bytes)}", ""
    if plan.pinned_bytes:
        pinned, free = format_together(plan.pinned_bytes, plan.host_available_bytes)
        weights += f" and {pinned} pinned on the host, which has {free} free"
    if plan.peak_bytes > plan.total_bytes:
        moving = f" (while loading, {format_bytes(plan.peak_bytes - plan.weights_bytes)} more)"
    return (
        f"{weights}{moving}, working memory {format_bytes(plan.workspace_bytes + plan.graphs_bytes)}, and a "
        f"cache of max_batch_size {plan.max_batch_size} × max_seq_len {plan.max_seq_len} takes "
        f"{format_bytes(plan.cache_bytes)}"
    )


def _advice(plan: MemoryPlan) -> str:
    """The first setting with which it fits, and how far; or that there is none."""
    least = _least(plan.request)
    for setting, changed, embedding in _changes(plan):
        longest = changed.longest_context(embedding)
        if longest >= least and not setting:
            return f"max_seq_len up to {longest} fits"
        if longest >= least:
            return f"{setting} fits, with max_seq_len up to {longest}"
    setting, smallest, embedding = _all_changes(plan)
    longest = smallest.longest_context(embedding)
    if longest:
        return f"only {setting} fits, with max_seq_len up to {longest}"
    needed, free = format_together(lay_out(smallest, 1, embedding).peak_bytes, smallest.available_bytes)
    return f"no context fits; the least, {setting}, takes {needed} of {free}"


def _least(request: MemoryRequest) -> int:
    """A context of less than this is no help, but to those who ask for it."""
    return min(_CONTEXT_STEP, request.max_seq_len or request.config.max_position_embeddings)


def _changes(plan: MemoryPlan) -> Iterator[tuple[str, MemoryRequest, str]]:
    """One setting after another that takes less: what it is called, the request with it, and where the
    embedding is."""
    request, embedding, least = plan.request, plan.embedding, _least(plan.request)
    if request.max_seq_len is not None:
        yield "", request, embedding
    batch_size = most(
        request.max_batch_size - 1,
        lambda count: replace(request, max_batch_size=count).longest_context(embedding) >= least,
    )
    if batch_size:
        yield f"max_batch_size {batch_size}", replace(request, max_batch_size=batch_size), embedding
    if request.may_pin:
        other = "device" if embedding == "host" else "host"
        yield f'embedding "{other}"', request, other
    for held in request.other_weights:
        yield held.setting, replace(request, weights=held), embedding
    if request.cache_dtype.itemsize > 2:
        yield 'cache_dtype "float16"', replace(request, cache_dtype=torch.float16), embedding


def _all_changes(plan: MemoryPlan) -> tuple[str, MemoryRequest, str]:
    """All of them at once: what takes least."""
    request, embedding, settings = (
        replace(plan.request, max_batch_size=1),
        plan.embedding,
        ["max_batch_size 1"],
    )
    if request.may_pin and pinned_bytes(request.weights.embedding_bytes) <= request.host_available_bytes:
        embedding = "host"
        settings.append('embedding "host"')
    if request.other_weights:
        least = min(request.other_weights, key=lambda held: held.other_bytes)
        request = replace(request, weights=least)
        settings.append(least.setting)
    if request.cache_dtype.itemsize > 2:
        request = replace(request, cache_dtype=torch.float16)
        settings.append('cache_dtype "float16"')
    return " and ".join(settings), request, embedding

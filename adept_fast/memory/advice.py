"""Plans the memory of a request, or names a setting with which it would fit."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from adept_fast.memory.available import available_bytes
from adept_fast.memory.plan import MemoryPlan, MemoryRequest, largest
from adept_fast.system.byte_counts import format_bytes, format_together

_CONTEXT_STEP = 64  # a context that is chosen to fit is a multiple of this many tokens


class InsufficientMemoryError(ValueError):
    """A request does not fit on the device; the message names a setting with which it does."""


def plan_memory(request: MemoryRequest) -> MemoryPlan:
    """Plan weights, workspace and cache. Raises InsufficientMemoryError if they do not fit."""
    embedding = request.chosen_embedding()
    longest = request.longest_context(embedding)
    chosen = request.max_seq_len
    if chosen is None:
        is_whole = longest == request.config.max_position_embeddings
        chosen = longest if is_whole else longest // _CONTEXT_STEP * _CONTEXT_STEP
    plan = replace(request.plan(chosen or _min_context(request), embedding), longest_context=longest)
    if not 1 <= chosen <= longest:
        free, needed = format_together(plan.available_bytes, plan.peak_bytes)
        raise InsufficientMemoryError(
            f"{plan.device} has {free} free, and {needed} are needed; {_demand(plan)}: {_advice(plan)}"
        )
    return plan


def out_of_memory(
    plan: MemoryPlan, during: str = "capturing a decode graph", *, held_bytes: int | None = None
) -> InsufficientMemoryError:
    """The error if memory ran out despite the plan.

    ``held_bytes`` is what weights and cache hold at this moment; None for all of the plan.
    """
    free = available_bytes(plan.request.device)
    held = plan.weights_bytes + plan.cache_bytes if held_bytes is None else held_bytes
    room = free + held
    if room >= plan.peak_bytes:  # the plan was too low, so the advice leaves a twentieth
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
    """Replace torch's error by ``out_of_memory``, after the allocations of the calls inside are released."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)
        raise out_of_memory(plan, during, held_bytes=held_bytes) from error


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch could not allocate memory, on a GPU or on the host."""
    message = str(error)
    of_driver = isinstance(error, torch.AcceleratorError) and "out of memory" in message
    return isinstance(error, torch.OutOfMemoryError) or of_driver or "can't allocate memory" in message


def _demand(plan: MemoryPlan) -> str:
    """``the weights take …, and a cache of …``."""
    weights, loading = f"the weights take {format_bytes(plan.weights_bytes)}", ""
    if plan.pinned_bytes:
        pinned, free = format_together(plan.pinned_bytes, plan.host_available_bytes)
        weights += f" and {pinned} pinned on the host, which has {free} free"
    if plan.peak_bytes > plan.total_bytes:
        loading = f" (while loading, {format_bytes(plan.peak_bytes - plan.weights_bytes)} more)"
    return (
        f"{weights}{loading}, working memory {format_bytes(plan.workspace_bytes + plan.graphs_bytes)}, and a "
        f"cache of max_batch_size {plan.max_batch_size} × max_seq_len {plan.max_seq_len} takes "
        f"{format_bytes(plan.cache_bytes)}"
    )


def _advice(plan: MemoryPlan) -> str:
    """The first setting with which the request fits, and its longest context; or that none fits."""
    enough = _min_context(plan.request)
    for setting, changed, embedding in _changes(plan):
        longest = changed.longest_context(embedding)
        if longest >= enough:
            up_to = f"max_seq_len up to {longest}"
            return f"{setting} fits, with {up_to}" if setting else f"{up_to} fits"
    setting, smallest, embedding = _all_changes(plan)
    longest = smallest.longest_context(embedding)
    if longest:
        return f"only {setting} fits, with max_seq_len up to {longest}"
    needed, free = format_together(smallest.plan(1, embedding).peak_bytes, smallest.available_bytes)
    return f"no context fits; the least, {setting}, takes {needed} of {free}"


def _min_context(request: MemoryRequest) -> int:
    """The shortest context that is advised, unless a shorter one is requested."""
    return min(_CONTEXT_STEP, request.max_seq_len or request.config.max_position_embeddings)


def _changes(plan: MemoryPlan) -> Iterator[tuple[str, MemoryRequest, str]]:
    """Settings that take less memory, each alone: name, changed request, device of the embedding."""
    request, embedding, enough = plan.request, plan.embedding, _min_context(plan.request)
    if request.max_seq_len is not None:
        yield "", request, embedding
    batch_size = largest(
        request.max_batch_size - 1,
        lambda count: replace(request, max_batch_size=count).longest_context(embedding) >= enough,
    )
    if batch_size:
        yield f"max_batch_size {batch_size}", replace(request, max_batch_size=batch_size), embedding
    if request.pinning_refusal is None:
        other = "device" if embedding == "host" else "host"
        yield f'embedding "{other}"', request, other
    for footprint in request.other_weights:
        yield footprint.setting, replace(request, weights=footprint), embedding
    if request.cache_dtype.itemsize > 2:
        yield 'cache_dtype "float16"', replace(request, cache_dtype=torch.float16), embedding


def _all_changes(plan: MemoryPlan) -> tuple[str, MemoryRequest, str]:
    """All of these settings together: the request that takes the minimum."""
    request, embedding = replace(plan.request, max_batch_size=1), plan.embedding
    settings = ["max_batch_size 1"]
    if request.can_pin:
        embedding = "host"
        settings.append('embedding "host"')
    if request.other_weights:
        smallest = min(request.other_weights, key=lambda footprint: footprint.other_bytes)
        request = replace(request, weights=smallest)
        settings.append(smallest.setting)
    if request.cache_dtype.itemsize > 2:
        request = replace(request, cache_dtype=torch.float16)
        settings.append('cache_dtype "float16"')
    return " and ".join(settings), request, embedding

"""Describes a placement to users: dtypes, pages and the device of the embedding, with reasons."""

from __future__ import annotations

from adept_fast.checkpoint import dtype_name
from adept_fast.engine.placement import Placement
from adept_fast.memory.plan import MemoryPlan, MemoryRequest
from adept_fast.quantization.layouts import layout_of


def describe_weights(placement: Placement) -> str:
    """``int4-g32, lm_head int8, embedding float16 (…)``."""
    chosen = dtype_name(placement.dtype)
    if placement.weights is not None:
        chosen = f"{placement.weights}, embedding {chosen}"
    return f"{chosen} ({placement.dtype_reason})"


def describe_layout(placement: Placement) -> str:
    """``row_major (…)``; on a CPU, the layout of packed matrices is another one."""
    is_cpu = placement.device.type == "cpu" and placement.weights is not None
    layout = layout_of(placement.device).layout if is_cpu else placement.layout
    return f"{layout} ({placement.layout_reason})"


def describe_pages(request: MemoryRequest) -> str:
    """The pages of memory that hold the matrices, with the reason."""
    reason = request.small_pages_reason
    return "huge (read faster than a memory-mapped file)" if reason is None else f"small ({reason})"


def describe_embedding(request: MemoryRequest, plan: MemoryPlan | None) -> str:
    """``pinned on the host (…)``; without a plan, the possible memories."""
    if request.device.type == "cpu":
        return "in memory (as the rest)"
    if request.embedding != "auto":
        return f"{'on the device' if request.embedding == 'device' else 'pinned on the host'} (as asked)"
    if request.pinning_refusal is not None:
        return f"on the device ({request.pinning_refusal})"
    if plan is None:
        return "on the device or on the host (as fits)"
    if plan.embedding == "device":
        return "on the device (all fits there)"
    return "pinned on the host (with it on the device not all would fit)"

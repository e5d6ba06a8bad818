"""A placement in words: why weights are as they are, where they lie, and what cannot read them."""

from __future__ import annotations

import torch

from adept_fast.checkpoint import Checkpoint, dtype_name
from adept_fast.memory.plan import MemoryPlan, MemoryRequest
from adept_fast.ops import cuda
from adept_fast.placement import Placement, packed_formats
from adept_fast.weights import packs_wide


def describe_weights(checkpoint: Checkpoint, placement: Placement) -> str:
    """``int4, lm_head int8, embedding float16 (…)``."""
    chosen = dtype_name(placement.dtype)
    if placement.weights == "int4":
        is_wide = packs_wide(checkpoint, placement.device)
        kind = "int4 in groups of 128, lm_head fp8" if is_wide else "int4, lm_head int8"
        chosen = f"{kind}, embedding {chosen}"
    elif placement.weights is not None:
        chosen = f"{placement.weights}, embedding {chosen}"
    return f"{chosen} ({placement.dtype_reason})"


def describe_pages(request: MemoryRequest) -> str:
    """Of the memory that the matrices lie in."""
    reason = request.small_pages_reason
    return "huge (read faster than a memory-mapped file)" if reason is None else f"small ({reason})"


def describe_embedding(request: MemoryRequest, plan: MemoryPlan | None) -> str:
    """Where it is: ``pinned on the host (…)``; or where it may be, if there is no plan."""
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


def unreadable_reason(checkpoint: Checkpoint, placement: Placement) -> str | None:
    """Why the kernels of a GPU do not read the matrices, and what they would read; None if they do."""
    if placement.device.type != "cuda":
        return None
    if checkpoint.weights is not None:
        return (
            f"the checkpoint's {checkpoint.weights} is packed for a CPU; the float checkpoint with weights "
            f"{' or '.join(packed_formats(placement.device))} would run on the kernels"
        )
    if placement.weights is None and placement.dtype == torch.float32:
        return "the kernels take float16 and bfloat16, not float32"
    if checkpoint.config.hidden_size % cuda.VECTOR:
        return f"the kernels take a hidden_size in multiples of {cuda.VECTOR}"
    return None

"""From a checkpoint to a model in memory: planned first, then loaded."""

from __future__ import annotations

import torch

from adept_fast.checkpoint import Checkpoint
from adept_fast.kv_cache import StaticKVCache
from adept_fast.memory.advice import (
    InsufficientMemoryError,
    MemoryPlan,
    MemoryRequest,
    available_bytes,
    explaining_out_of_memory,
    plan_memory,
)
from adept_fast.memory.plan import UNLIMITED_BYTES, HeldWeights
from adept_fast.model import Persimmon
from adept_fast.ops import cuda
from adept_fast.placement import Placement, held_dtype
from adept_fast.quantization.formats import WeightFormat
from adept_fast.quantization.layouts import kernel_formats
from adept_fast.weights import (
    PinnedMemoryError,
    embedding_bytes,
    load_weights,
    moving_bytes,
    weights_bytes,
)

_CPU = torch.device("cpu")


def plan_loading(
    checkpoint: Checkpoint, placement: Placement, *, max_seq_len: int | None, max_batch_size: int
) -> tuple[Placement, MemoryPlan]:
    """What it will take, and the placement with the place of the embedding, where that was left open.

    Raises InsufficientMemoryError when it does not fit, saying what would.
    """
    device, imagined = placement.device, placement.imagined_bytes
    free_on_host = UNLIMITED_BYTES
    if device.type == "cuda" and imagined is None:
        free_on_host = available_bytes(_CPU)
    request = MemoryRequest(
        config=checkpoint.config,
        device=device,
        weights=_held(checkpoint, placement, placement.weights),
        vocab_rows=placement.vocab_rows or checkpoint.config.vocab_size,
        available_bytes=available_bytes(device) if imagined is None else imagined,
        host_available_bytes=free_on_host,
        cache_dtype=placement.cache_dtype,
        max_seq_len=max_seq_len,
        max_batch_size=max_batch_size,
        embedding=placement.embedding,
        may_pin=placement.may_pin_embedding,
        other_weights=tuple(
            _held(checkpoint, placement, weights) for weights in _smaller_formats(checkpoint, placement)
        ),
    )
    plan = plan_memory(request)
    return placement.settled(plan.embedding), plan


def load_model(
    checkpoint: Checkpoint,
    placement: Placement,
    plan: MemoryPlan,
    *,
    check_weights: bool = True,
    progress: bool = True,
) -> tuple[Persimmon, StaticKVCache]:
    """Load what was planned. Raises InsufficientMemoryError where memory runs out all the same."""
    try:
        with explaining_out_of_memory(plan, during="loading", held_bytes=0):
            return _load(checkpoint, placement, plan, check_weights, progress)
    except PinnedMemoryError as error:
        raise InsufficientMemoryError(str(error)) from error


def _load(
    checkpoint: Checkpoint, placement: Placement, plan: MemoryPlan, check_weights: bool, progress: bool
) -> tuple[Persimmon, StaticKVCache]:
    config = checkpoint.config
    weights = load_weights(
        checkpoint,
        dtype=placement.dtype,
        device=placement.device,
        weights=placement.weights,
        vocab_rows=placement.vocab_rows,
        embedding_on_host=placement.embedding == "host",
        huge_pages=placement.small_pages_reason is None,
        check_finite=check_weights,
        progress=progress,
    )
    model = Persimmon(
        config, weights, max_seq_len=plan.max_seq_len, vocab_size=checkpoint.tokenizer.vocab_size
    )
    cache = StaticKVCache(
        config,
        max_batch_size=plan.max_batch_size,
        max_seq_len=plan.max_seq_len,
        dtype=placement.cache_dtype,
        device=placement.device,
    )
    return model, cache


def _held(checkpoint: Checkpoint, placement: Placement, weights: WeightFormat | None) -> HeldWeights:
    """What the weights take in that format."""
    device, rows = placement.device, placement.vocab_rows
    dtype = held_dtype(checkpoint, device, placement.asked_dtype, weights)
    embedding = embedding_bytes(checkpoint, dtype, weights, rows)
    return HeldWeights(
        setting=f'weights "{weights.name if weights else None}"',
        other_bytes=weights_bytes(checkpoint, dtype, weights, device, rows) - embedding,
        embedding_bytes=embedding,
        moving_bytes=moving_bytes(checkpoint, dtype, weights, device, rows),
        unpacking_bytes=cuda.DEQUANTIZING_BYTES if weights and device.type == "cuda" else 0,
    )


def _smaller_formats(checkpoint: Checkpoint, placement: Placement) -> list[WeightFormat]:
    """Those that would pack the matrices in fewer bits than they have."""
    if checkpoint.weights is not None:
        return []
    formats, now = kernel_formats(placement.device), placement.weights
    return [smaller for smaller in formats if now is None or smaller.bits < now.bits]

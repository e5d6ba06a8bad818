"""From a checkpoint to a model in memory: placed, planned, then loaded."""

from __future__ import annotations

import torch

from adept_fast.arguments import ParameterError, one_of
from adept_fast.checkpoint import Checkpoint
from adept_fast.engine.placement import Placement, choose_placement, find_device
from adept_fast.kv_cache import StaticKVCache
from adept_fast.memory.advice import InsufficientMemoryError, explaining_out_of_memory
from adept_fast.memory.available import available_bytes
from adept_fast.memory.footprint import Footprint, footprint
from adept_fast.memory.plan import UNLIMITED_BYTES, MemoryPlan, MemoryRequest
from adept_fast.model import Persimmon
from adept_fast.ops import cuda, optional
from adept_fast.ops.ranks import ONE_RANK, Ranks
from adept_fast.quantization.formats import WeightFormat
from adept_fast.quantization.layouts import advised_formats
from adept_fast.weights import PinnedMemoryError, is_tied, load_weights

_CPU = torch.device("cpu")
_EMBEDDINGS = ("auto", "device", "host")


def request_memory(
    checkpoint: Checkpoint,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    cache_dtype: str | torch.dtype = "float16",
    weights: str | None = None,
    weight_layout: str = "auto",
    embedding: str = "auto",
    max_seq_len: int | None = None,
    max_batch_size: int = 1,
    gpu_memory: int | None = None,
    sharing_ranks: int = 1,
) -> tuple[Placement, MemoryRequest]:
    """The placement of a checkpoint, and the request for its memory.

    ``gpu_memory`` stands for a GPU with that many free bytes, in place of ``device``; it is assumed that the
    kernels run on it, and that the host has room for pinned memory. ``sharing_ranks`` processes, each with a
    part of the model, share the free memory of the device.

    Raises ParameterError for an unknown name, an absent device, a layout that its kernels do not read or an
    embedding that cannot be on the requested one, CheckpointError if the weights are packed in another format
    than ``weights``.
    """
    where = find_device(device) if gpu_memory is None else torch.device("cuda")
    is_gpu, is_here = where.type == "cuda", gpu_memory is None
    unavailable = cuda.unavailable(where) if is_gpu and is_here else None
    in_layout = weight_layout, unavailable
    placement = choose_placement(checkpoint, where, dtype, cache_dtype, weights, *in_layout)
    if is_gpu:
        try:
            optional.allowed()
        except optional.OptionalPackageError as error:
            raise ParameterError(str(error)) from error
    embedding = one_of("embedding", embedding, _EMBEDDINGS)
    refusal = _pinning_refusal(checkpoint, placement, unavailable)
    if is_gpu and embedding == "host" and refusal is not None:
        raise ParameterError(f"embedding is 'host'; expected device or auto, as {refusal}")
    config = checkpoint.config
    # Of a rank that has only unused rows, one is loaded.
    used_rows = min(max(checkpoint.tokenizer.vocab_size - config.first_id, 1), config.vocab_size)
    vocab_rows = used_rows if is_gpu else config.vocab_size

    def footprint_of(placed: Placement) -> Footprint:
        return footprint(checkpoint, placed.dtype, placed.weights, where, vocab_rows, placed.layout)

    return placement, MemoryRequest(
        config=config,
        device=where,
        weights=footprint_of(placement),
        vocab_rows=vocab_rows,
        logits_rows=checkpoint.tokenizer.vocab_size if is_gpu else config.whole.vocab_size,
        available_bytes=(available_bytes(where) if is_here else gpu_memory or 0) // sharing_ranks,
        host_available_bytes=available_bytes(_CPU) if is_gpu and is_here else UNLIMITED_BYTES,
        cache_dtype=placement.cache_dtype,
        max_seq_len=max_seq_len,
        max_batch_size=max_batch_size,
        embedding=embedding if is_gpu else "device",
        pinning_refusal=refusal,
        other_weights=tuple(
            footprint_of(choose_placement(checkpoint, where, dtype, cache_dtype, smaller.name, *in_layout))
            for smaller in _smaller_formats(checkpoint, placement)
        ),
    )


def load_model(
    checkpoint: Checkpoint,
    placement: Placement,
    plan: MemoryPlan,
    *,
    check_weights: bool = True,
    exact_prefill: bool = False,
    progress: bool = True,
    ranks: Ranks = ONE_RANK,
) -> tuple[Persimmon, StaticKVCache]:
    """Load a model as planned, or the part of it that one of several ``ranks`` has.

    Raises InsufficientMemoryError if memory runs out nevertheless.
    """
    try:
        with explaining_out_of_memory(plan, during="loading", held_bytes=0):
            return _load(checkpoint, placement, plan, check_weights, exact_prefill, progress, ranks)
    except PinnedMemoryError as error:
        raise InsufficientMemoryError(str(error)) from error


def _load(
    checkpoint: Checkpoint,
    placement: Placement,
    plan: MemoryPlan,
    check_weights: bool,
    exact_prefill: bool,
    progress: bool,
    ranks: Ranks,
) -> tuple[Persimmon, StaticKVCache]:
    config = checkpoint.config
    weights = load_weights(
        checkpoint,
        dtype=placement.dtype,
        device=placement.device,
        weights=placement.weights,
        layout=placement.layout,
        vocab_rows=plan.request.vocab_rows,
        embedding_on_host=plan.embedding == "host",
        huge_pages=plan.request.small_pages_reason is None,
        check_finite=check_weights,
        agree=ranks.largest,
        progress=progress,
    )
    model = Persimmon(
        config,
        weights,
        max_seq_len=plan.max_seq_len,
        vocab_size=checkpoint.tokenizer.vocab_size,
        exact_prefill=exact_prefill,
        ranks=ranks,
    )
    cache = StaticKVCache(
        config,
        max_batch_size=plan.max_batch_size,
        max_seq_len=plan.max_seq_len,
        dtype=placement.cache_dtype,
        device=placement.device,
    )
    return model, cache


def _pinning_refusal(checkpoint: Checkpoint, placement: Placement, unavailable: str | None) -> str | None:
    """The reason that the embedding cannot be on the host while the rest is on a GPU; None if it can."""
    if placement.device.type != "cuda":
        return "the rest is there too"
    if is_tied(checkpoint, placement.weights):
        return "it is the output matrix too, which every step reads"
    return None if unavailable is None else f"only the CUDA kernels look it up on the host: {unavailable}"


def _smaller_formats(checkpoint: Checkpoint, placement: Placement) -> list[WeightFormat]:
    """The advised formats with fewer bits than the matrices have."""
    if checkpoint.weights is not None:
        return []
    formats, now = advised_formats(placement.device), placement.weights
    return [smaller for smaller in formats if now is None or smaller.bits < now.bits]

"""Footprint: the bytes of a checkpoint's weights in one format, from their shapes alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from adept_fast.checkpoint import Checkpoint
from adept_fast.ops import cuda_gemm
from adept_fast.quantization.formats import WeightFormat
from adept_fast.quantization.layouts import ROW_MAJOR, TILES
from adept_fast.weights import (
    EMBEDDING,
    embedding_dtype,
    is_tied,
    matrices_to_pack,
    weight_format,
    with_vocabulary,
)

_CPU = torch.device("cpu")
_PACKING_BLOCKS_BYTES = 1 << 27  # of the blocks in which a GPU rounds a matrix, or lays it in tiles


@dataclass(frozen=True)
class Footprint:
    """The bytes of weights packed as ``weights``; None for floats.

    ``embedding_bytes`` is 0 if the embedding is the output matrix too. ``loading_bytes`` is the maximum that
    loading a matrix needs beside the weights, ``unpacking_bytes`` what a long prompt needs to dequantize.
    """

    weights: WeightFormat | None
    other_bytes: int
    embedding_bytes: int = 0
    loading_bytes: int = 0
    unpacking_bytes: int = 0

    @property
    def setting(self) -> str:
        """``weights "int8"``, for advice."""
        return f'weights "{None if self.weights is None else self.weights.name}"'

    @property
    def total_bytes(self) -> int:
        """All weights, wherever the embedding is."""
        return self.other_bytes + self.embedding_bytes


def footprint(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    weights: WeightFormat | None = None,
    device: torch.device = _CPU,
    vocab_rows: int | None = None,
    layout: str = ROW_MAJOR,
) -> Footprint:
    """The footprint of ``load_weights`` with the same arguments."""
    weights = weight_format(checkpoint, weights)
    sizes = tensor_bytes(checkpoint, dtype, weights, device, vocab_rows, layout)
    is_unpacked = device.type == "cuda" and (weights is not None or layout == TILES)
    embedding = 0 if is_tied(checkpoint, weights) else sizes[EMBEDDING]
    return Footprint(
        weights,
        other_bytes=sum(sizes.values()) - embedding,
        embedding_bytes=embedding,
        loading_bytes=_loading_bytes(checkpoint, dtype, weights, device, vocab_rows, layout),
        unpacking_bytes=cuda_gemm.DEQUANTIZING_BYTES if is_unpacked else 0,
    )


def tensor_bytes(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    weights: WeightFormat | None = None,
    device: torch.device = _CPU,
    vocab_rows: int | None = None,
    layout: str = ROW_MAJOR,
) -> dict[str, int]:
    """Name → bytes of each tensor that ``load_weights`` returns; a tied output matrix only if packed."""
    weights = weight_format(checkpoint, weights)
    checkpoint = with_vocabulary(checkpoint, vocab_rows)
    matrices = matrices_to_pack(checkpoint, dtype, weights, device, layout)
    sizes = {name: matrix.nbytes for name, matrix in matrices.items()}
    for name, tensor in checkpoint.tensors.items():
        held = torch.float32 if len(tensor.shape) == 1 else dtype
        if name == EMBEDDING:
            held = embedding_dtype(checkpoint, dtype, weights)
        sizes.setdefault(name, torch.Size(tensor.shape).numel() * held.itemsize)
    return sizes


def _loading_bytes(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    weights: WeightFormat | None,
    device: torch.device,
    vocab_rows: int | None,
    layout: str,
) -> int:
    """A GPU transposes a matrix, rounds it from its stored dtype, or lays blocks of it in tiles."""
    if device.type == "cpu" or checkpoint.weights is not None:
        return 0
    checkpoint = with_vocabulary(checkpoint, vocab_rows)
    matrices = matrices_to_pack(checkpoint, dtype, weights, device, layout)
    if weights is not None:
        sources = [checkpoint.tensors[matrix.tensor] for matrix in matrices.values()]
        stored = max(torch.Size(source.shape).numel() * source.dtype.itemsize for source in sources)
        return stored + _PACKING_BLOCKS_BYTES
    if matrices:
        return _PACKING_BLOCKS_BYTES
    return checkpoint.config.hidden_size * checkpoint.config.intermediate_size * dtype.itemsize

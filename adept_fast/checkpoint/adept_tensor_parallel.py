"""Ranks of tensor parallelism, put together: each has a share of large tensors and a copy of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from adept_fast.checkpoint.adept_rank import RankFile
from adept_fast.checkpoint.base import CheckpointError, StoredTensor, dtype_name

# The dimension along which tensor parallelism splits a tensor; every other one is whole on each rank.
_SPLIT_SUFFIXES = {
    "embedding.word_embeddings.weight": 0,
    "word_embeddings_for_head.weight": 0,
    ".query_key_value.weight": 0,
    ".query_key_value.bias": 0,
    ".dense_h_to_4h.weight": 0,
    ".dense_h_to_4h.bias": 0,
    ".self_attention.dense.weight": 1,
    ".dense_4h_to_h.weight": 1,
}


def merge_ranks(ranks: Sequence[RankFile]) -> dict[str, StoredTensor]:
    """The tensors of all ranks under Adept's names, each put together when it is read.

    Raises CheckpointError where a tensor is not in every rank, or differs in shape or dtype.
    """
    names = ranks[0].tensors
    for rank in ranks[1:]:
        different = names.keys() ^ rank.tensors.keys()
        if different:
            raise CheckpointError(
                f"{rank.file.label}: tensor {min(different)} is in this file or in "
                f"{ranks[0].file.label}; expected it in both"
            )
    return {name: _merge(name, [rank.tensors[name] for rank in ranks]) for name in names}


def _merge(name: str, parts: list[StoredTensor]) -> StoredTensor:
    first = parts[0]
    if len(parts) == 1:
        return first
    require_alike(parts)
    split = next((split for suffix, split in _SPLIT_SUFFIXES.items() if name.endswith(suffix)), None)
    if split is None or len(first.shape) <= split:
        return replace(first, read=partial(read_whole, parts))
    shape = list(first.shape)
    shape[split] = sum(part.shape[split] for part in parts)
    return replace(first, shape=tuple(shape), read=partial(_read_split, parts, split))


def require_alike(parts: Sequence[StoredTensor]) -> None:
    """Raises CheckpointError where the tensors differ in shape or dtype.

    Adept's code gives every rank the same share, so this holds for shards as for copies.
    """
    first = parts[0]
    for part in parts[1:]:
        if (part.shape, part.dtype) != (first.shape, first.dtype):
            raise CheckpointError(
                f"{part.source}: tensor {part.name} has shape {list(part.shape)} and dtype "
                f"{dtype_name(part.dtype)}; expected {list(first.shape)} and {dtype_name(first.dtype)} "
                f"as in {first.source}"
            )


def _read_split(parts: list[StoredTensor], dimension: int) -> Tensor:
    return torch.cat([part.read() for part in parts], dim=dimension)


def read_whole(parts: Sequence[StoredTensor]) -> Tensor:
    """The first of several copies; CheckpointError where another one has other bytes."""
    first = parts[0].read()
    for part in parts[1:]:
        # As bytes, so that a NaN equals itself: finding those is another check.
        if not torch.equal(_bytes_of(first), _bytes_of(part.read())):
            raise CheckpointError(
                f"{part.source}: tensor {part.name} is not equal to that in {parts[0].source}; "
                f"expected copies of one tensor"
            )
    return first


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)

"""Merges the ranks of tensor parallelism and the stages of pipeline parallelism into one set of tensors.

A rank has a share of each large tensor and a copy of the others; a stage has a share of the layers, numbered
from 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from adept_fast.checkpoint.adept_rank import RankFile
from adept_fast.checkpoint.base import CheckpointError, StoredTensor, dtype_name

EMBEDDING = "language_model.embedding.word_embeddings.weight"
HEAD = "word_embeddings_for_head.weight"
_FINAL_LAYERNORM = "language_model.encoder.final_layernorm."
_LAYERS = "language_model.encoder.layers."
_LAYER = re.compile(r"(0|[1-9][0-9]{0,5})\.(.+)")

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

    Raises CheckpointError if a tensor is not in every rank, or differs in shape or dtype.
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


def merge_stages(
    stages: Sequence[Mapping[str, StoredTensor]], sources: Sequence[str], num_layers: int, tied: bool
) -> dict[str, StoredTensor]:
    """The whole model's tensors under Adept's names.

    Args:
        stages: the tensors of each stage, in order, under the names in its own files.
        sources: a file of each stage, for errors.
        num_layers: of the whole model.
        tied: whether the last stage's output matrix is a copy of the first one's embedding, which is checked
            when that is read.

    Raises CheckpointError if the stages do not have equal shares of the layers, or a tensor is in another
    stage than its own.
    """
    if len(stages) == 1:
        return dict(stages[0])
    share, rest = divmod(num_layers, len(stages))
    if rest:
        raise CheckpointError(
            f"{sources[0]}: args.num_layers is {num_layers}; expected a multiple of {len(stages)}, "
            f"as there are {len(stages)} pipeline stages with equal shares"
        )
    merged: dict[str, StoredTensor] = {}
    for at, (tensors, source) in enumerate(zip(stages, sources, strict=True)):
        found = {layer for name in tensors if (layer := _layer_of(name)[0]) is not None}
        if found != set(range(share)):
            raise CheckpointError(
                f"{source}: pipeline stage {at} of {len(stages)} has {len(found)} layers"
                f"{_odd_numbers(found)}; expected {share}, numbered from 0, "
                f"as args.num_layers is {num_layers}"
            )
        for name, tensor in tensors.items():
            _require_stage(name, tensor, at, len(stages))
            layer, below = _layer_of(name)
            whole = name if layer is None else f"{_LAYERS}{layer + at * share}.{below}"
            if whole in merged:
                raise CheckpointError(f"{tensor.source}: tensor {name} is in an earlier pipeline stage too")
            merged[whole] = tensor
    if tied and HEAD in merged and EMBEDDING in merged:
        copies = [merged[EMBEDDING], merged.pop(HEAD)]
        _require_alike(copies)
        merged[EMBEDDING] = replace(
            copies[0], read=partial(_read_whole, copies), read_part=partial(_read_part_of_copies, copies)
        )
    return merged


def _merge(name: str, parts: list[StoredTensor]) -> StoredTensor:
    first = parts[0]
    if len(parts) == 1:
        return first
    _require_alike(parts)
    split = next((split for suffix, split in _SPLIT_SUFFIXES.items() if name.endswith(suffix)), None)
    if split is None or len(first.shape) <= split:
        return replace(first, read=partial(_read_whole, parts))
    shape = list(first.shape)
    shape[split] = sum(part.shape[split] for part in parts)
    return replace(
        first,
        shape=tuple(shape),
        read=partial(_read_split, parts, split),
        read_part=partial(_read_part, parts, split),
    )


def _require_alike(parts: Sequence[StoredTensor]) -> None:
    """Raises CheckpointError if the tensors differ in shape or dtype: all ranks have equal shares."""
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


def _read_part(parts: list[StoredTensor], split: int, dimension: int, start: int, stop: int) -> Tensor:
    """Slices of the whole tensor along a dimension, read from the ranks that have them alone."""
    if dimension != split:
        return _read_split([part.part(dimension, start, stop) for part in parts], split)
    size = parts[0].shape[split]
    needed = [
        part.part(split, max(start - at * size, 0), min(stop - at * size, size))
        for at, part in enumerate(parts)
        if at * size < stop and start < (at + 1) * size
    ]
    return needed[0].read() if len(needed) == 1 else _read_split(needed, split)


def _read_whole(parts: Sequence[StoredTensor]) -> Tensor:
    """The first of several copies; CheckpointError if another one has other bytes."""
    first = parts[0].read()
    for part in parts[1:]:
        # As bytes, so that a NaN equals itself: finding those is another check.
        if not torch.equal(_bytes_of(first), _bytes_of(part.read())):
            raise CheckpointError(
                f"{part.source}: tensor {part.name} is not equal to that in {parts[0].source}; "
                f"expected copies of one tensor"
            )
    return first


def _read_part_of_copies(copies: Sequence[StoredTensor], dimension: int, start: int, stop: int) -> Tensor:
    return _read_whole([copy.part(dimension, start, stop) for copy in copies])


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def _layer_of(name: str) -> tuple[int | None, str]:
    """The number of a tensor's layer, None if it is in none, and its name within the layer."""
    match = _LAYER.fullmatch(name.removeprefix(_LAYERS)) if name.startswith(_LAYERS) else None
    return (int(match[1]), match[2]) if match else (None, name)


def _odd_numbers(found: set[int]) -> str:
    """A clause for a wrong number, if the count is not at fault."""
    beyond = sorted(number for number in found if number >= len(found))
    return f", one of them numbered {beyond[0]}" if beyond else ""


def _require_stage(name: str, tensor: StoredTensor, stage: int, stages: int) -> None:
    if name == EMBEDDING:
        expected = 0
    elif name == HEAD or name.startswith(_FINAL_LAYERNORM):
        expected = stages - 1
    else:
        return
    if stage != expected:
        raise CheckpointError(
            f"{tensor.source}: tensor {name} is in pipeline stage {stage}; "
            f"expected it in stage {expected} alone"
        )

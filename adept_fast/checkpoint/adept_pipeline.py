"""Stages of pipeline parallelism, put together: each has its share of the layers, numbered from 0."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from adept_fast.checkpoint.adept_tensor_parallel import read_whole, require_alike
from adept_fast.checkpoint.base import CheckpointError, StoredTensor

EMBEDDING = "language_model.embedding.word_embeddings.weight"
HEAD = "word_embeddings_for_head.weight"
_FINAL_LAYERNORM = "language_model.encoder.final_layernorm."
_LAYERS = "language_model.encoder.layers."
_LAYER = re.compile(r"(0|[1-9][0-9]{0,5})\.(.+)")


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

    Raises CheckpointError where the stages do not have equal shares of the layers, or a tensor is in another
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
            _require_place(name, tensor, at, len(stages))
            layer, below = _layer_of(name)
            whole = name if layer is None else f"{_LAYERS}{layer + at * share}.{below}"
            if whole in merged:
                raise CheckpointError(f"{tensor.source}: tensor {name} is in an earlier pipeline stage too")
            merged[whole] = tensor
    if tied and HEAD in merged and EMBEDDING in merged:
        copies = [merged[EMBEDDING], merged.pop(HEAD)]
        require_alike(copies)
        merged[EMBEDDING] = replace(copies[0], read=partial(read_whole, copies))
    return merged


def _layer_of(name: str) -> tuple[int | None, str]:
    """The number of a tensor's layer, None where it is in none, and its name within the layer."""
    match = _LAYER.fullmatch(name.removeprefix(_LAYERS)) if name.startswith(_LAYERS) else None
    return (int(match[1]), match[2]) if match else (None, name)


def _odd_numbers(found: set[int]) -> str:
    """Says where numbering is what is wrong, rather than how many there are."""
    beyond = sorted(number for number in found if number >= len(found))
    return f", one of them numbered {beyond[0]}" if beyond else ""


def _require_place(name: str, tensor: StoredTensor, stage: int, stages: int) -> None:
    if name == EMBEDDING:
        place = 0
    elif name == HEAD or name.startswith(_FINAL_LAYERNORM):
        place = stages - 1
    else:
        return
    if stage != place:
        raise CheckpointError(
            f"{tensor.source}: tensor {name} is in pipeline stage {stage}; expected it in stage {place} alone"
        )

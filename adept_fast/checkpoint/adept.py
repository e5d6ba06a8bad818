"""Adept's release: tensor-parallel shards from torch.save, an ``args`` namespace, ``adept_vocab.model``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from adept_fast.checkpoint.adept_args import PER_RANK, config_from_args
from adept_fast.checkpoint.adept_layout import find_release, is_release
from adept_fast.checkpoint.adept_rank import RankFile, read_rank
from adept_fast.checkpoint.base import (
    Checkpoint,
    CheckpointError,
    StoredTensor,
    check_tensors,
    check_vocabulary,
    dtype_name,
)
from adept_fast.checkpoint.pickle_machine import MAX_NAMES_KEPT
from adept_fast.config import PersimmonConfig
from adept_fast.tokenizer import Tokenizer

_LARGEST_TOKENIZER = 64 * 2**20
_EMBEDDING = "language_model.embedding.word_embeddings.weight"
_HEAD = "word_embeddings_for_head.weight"
_ENCODER = "language_model.encoder."

# The dimension along which tensor parallelism splits a tensor; every other one is whole on each rank.
_SPLIT_NAMES = {_EMBEDDING: 0, _HEAD: 0}
_SPLIT_SUFFIXES = {
    ".query_key_value.weight": 0,
    ".query_key_value.bias": 0,
    ".dense_h_to_4h.weight": 0,
    ".dense_h_to_4h.bias": 0,
    ".self_attention.dense.weight": 1,
    ".dense_4h_to_h.weight": 1,
}


def is_adept(path: Path) -> bool:
    """Whether the path looks like Adept's release: one of its directories, or a tar."""
    return is_release(path)


def open_adept(path: Path) -> Checkpoint:
    """Open Adept's release, in a directory or in its tar, and check its structure; no weight is read yet.

    Of a directory, the release's root, its ``iter_*`` directory and any ``mp_rank_*`` directory mean the same
    model; see ``find_release`` for where the tokenizer may be.

    Raises CheckpointError (or ConfigError, TokenizerError) naming the file, the tensor and what was expected.
    """
    release = find_release(path)
    tokenizer = Tokenizer(
        release.tokenizer.read(_LARGEST_TOKENIZER), add_bos=False, source=release.tokenizer.label
    )
    ranks = [read_rank(file) for file in release.ranks]
    tensors = _merge_ranks(ranks)
    config = _agreed_config(ranks, tensors, tokenizer)
    check_vocabulary(path, config, tokenizer)
    checked = check_tensors(path, config, tensors)
    if len(ranks) > 1 and ranks[0].args.get("qk_layernorm") == PER_RANK:
        _check_one_qk_layernorm(ranks[0], checked)
    left_unread = tuple(dict.fromkeys(name for rank in ranks for name in rank.left_unread))
    return Checkpoint(path, "adept", config, checked, tokenizer, left_unread=left_unread[:MAX_NAMES_KEPT])


def _agreed_config(
    ranks: list[RankFile], tensors: dict[str, StoredTensor], tokenizer: Tokenizer
) -> PersimmonConfig:
    """The config of every rank; CheckpointError where they differ."""
    embedding = tensors.get("model.embed_tokens.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{ranks[0].file.label}: tensor {_EMBEDDING} is missing or not a matrix")
    configs = [
        config_from_args(
            rank.args,
            source=rank.file.label,
            ranks=len(ranks),
            embedding_rows=embedding.shape[0],
            has_head="lm_head.weight" in tensors,
            tokenizer=tokenizer,
        )
        for rank in ranks
    ]
    for rank, config in zip(ranks, configs, strict=True):
        if config != configs[0]:
            raise CheckpointError(
                f"{rank.file.label}: its args describe another model than those of {ranks[0].file.label}"
            )
    return configs[0]


def _merge_ranks(ranks: list[RankFile]) -> dict[str, StoredTensor]:
    """The whole model's tensors under transformers' names, each put together when it is read."""
    names = ranks[0].tensors
    for rank in ranks[1:]:
        different = names.keys() ^ rank.tensors.keys()
        if different:
            raise CheckpointError(
                f"{rank.file.label}: tensor {min(different)} is in this file or in "
                f"{ranks[0].file.label}; expected it in both"
            )
    merged: dict[str, StoredTensor] = {}
    for adept_name in names:
        tensor = _merge(adept_name, [rank.tensors[adept_name] for rank in ranks])
        if tensor.name in merged:
            raise CheckpointError(
                f"{tensor.source}: tensor {adept_name} and another one both mean {tensor.name}"
            )
        merged[tensor.name] = tensor
    return merged


def _merge(adept_name: str, parts: list[StoredTensor]) -> StoredTensor:
    name = _transformers_name(adept_name)
    first = parts[0]
    if len(parts) == 1:
        return replace(first, name=name)
    _require_alike(parts)
    split = _split_dimension(adept_name)
    if split is None or len(first.shape) <= split:
        return replace(first, name=name, read=partial(_read_whole, parts))
    shape = list(first.shape)
    shape[split] = sum(part.shape[split] for part in parts)
    return replace(first, name=name, shape=tuple(shape), read=partial(_read_split, parts, split))


def _split_dimension(adept_name: str) -> int | None:
    if adept_name in _SPLIT_NAMES:
        return _SPLIT_NAMES[adept_name]
    return next((split for suffix, split in _SPLIT_SUFFIXES.items() if adept_name.endswith(suffix)), None)


def _transformers_name(adept_name: str) -> str:
    if adept_name == _EMBEDDING:
        return "model.embed_tokens.weight"
    if adept_name == _HEAD:
        return "lm_head.weight"
    if adept_name.startswith(_ENCODER):
        return "model." + adept_name.removeprefix(_ENCODER).replace(".self_attention.", ".self_attn.")
    return adept_name


def _require_alike(parts: list[StoredTensor]) -> None:
    """Raises CheckpointError where the ranks' tensors differ in shape or dtype.

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


def _read_whole(parts: list[StoredTensor]) -> Tensor:
    """Rank 0's tensor; CheckpointError where another rank has other bytes."""
    first = parts[0].read()
    for part in parts[1:]:
        # As bytes, so that a NaN equals itself: finding those is another check.
        if not torch.equal(_bytes_of(first), _bytes_of(part.read())):
            raise CheckpointError(
                f"{part.source}: tensor {part.name} is not equal to that in {parts[0].source}; "
                f"expected one that every rank shares"
            )
    return first


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def _check_one_qk_layernorm(rank: RankFile, tensors: dict[str, StoredTensor]) -> None:
    """Ranks that each have a q/k LayerNorm are one model of this kind only if those are equal."""
    for name, tensor in tensors.items():
        if ".q_layernorm." not in name and ".k_layernorm." not in name:
            continue
        try:
            tensor.read()
        except CheckpointError as error:
            raise CheckpointError(
                f"{rank.file.label}: args.qk_layernorm is {PER_RANK!r}; expected all ranks' q/k LayerNorms "
                f"to be equal, as the model has one a layer ({error})"
            ) from error

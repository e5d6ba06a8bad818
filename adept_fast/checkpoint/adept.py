"""Adept's release: tensor-parallel shards from torch.save, an ``args`` namespace, ``adept_vocab.model``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from adept_fast.checkpoint.adept_layout import TOKENIZER_FILE, find_release
from adept_fast.checkpoint.adept_parallel import EMBEDDING, HEAD, merge_ranks, merge_stages
from adept_fast.checkpoint.adept_rank import PER_RANK, RankFile, config_from_args, read_rank
from adept_fast.checkpoint.base import (
    Checkpoint,
    CheckpointError,
    StoredTensor,
    bounded_names,
    check_model,
    check_vocabulary,
)
from adept_fast.checkpoint.file_range import FileRange
from adept_fast.config import PersimmonConfig
from adept_fast.system.file_limits import max_bytes
from adept_fast.tokenizer.tokenizer import Tokenizer

_ENCODER = "language_model.encoder."


def open_adept(path: Path, archive: FileRange | None = None, *, mmap: bool = True) -> Checkpoint:
    """Open Adept's release, in a directory or in its tar, and check its structure; no weight is read yet.

    The release's root, its ``iter_*`` directory and any ``mp_rank_*`` directory stand for the same model;
    ``find_release`` describes where it looks for the tokenizer.

    Raises CheckpointError, ConfigError or TokenizerError, which name the file, the tensor and the allowed
    value.
    """
    release = find_release(path, archive)
    tokenizer = Tokenizer(
        release.tokenizer.read(max_bytes(TOKENIZER_FILE)), add_bos=False, source=release.tokenizer.label
    )
    stages = [[read_rank(replace(file, mmap=mmap)) for file in files] for files in release.stages]
    ranks = [rank for stage in stages for rank in stage]
    tensors = _renamed(_merge(stages))
    config = _agreed_config(stages, tensors, tokenizer)
    check_vocabulary(path, config, tokenizer)
    checked = check_model(path, config, tensors)
    if len(stages[0]) > 1 and ranks[0].args.get("qk_layernorm") == PER_RANK:
        _check_one_qk_layernorm(ranks[0], checked)
    in_ranks = (name for rank in ranks for name in rank.left_unread)
    left_unread = bounded_names((*release.left_unread, *in_ranks))
    return Checkpoint(path, "adept", config, checked, tokenizer, left_unread=left_unread, mmap=mmap)


def _merge(stages: list[list[RankFile]]) -> dict[str, StoredTensor]:
    """The whole model's tensors under Adept's names."""
    for args in (rank.args for ranks in stages for rank in ranks):
        args.require_parallel("pipeline_model_parallel_size", len(stages), "that many stages are there")
        args.require_parallel("virtual_pipeline_model_parallel_size", 1, "interleaved stages are not read")
    args = stages[0][0].args
    return merge_stages(
        [merge_ranks(ranks) for ranks in stages],
        [ranks[0].file.label for ranks in stages],
        num_layers=args.size("num_layers"),
        tied=args.get("untie_embeddings") is False,
    )


def _agreed_config(
    stages: list[list[RankFile]], tensors: dict[str, StoredTensor], tokenizer: Tokenizer
) -> PersimmonConfig:
    """The config of every rank; CheckpointError if they differ."""
    ranks = [rank for stage in stages for rank in stage]
    embedding = tensors.get("model.embed_tokens.weight")
    if embedding is None or len(embedding.shape) != 2:
        first = next(iter(tensors.values())).name if tensors else "none"
        raise CheckpointError(
            f"{ranks[0].file.label}: tensor {EMBEDDING} is missing or not a matrix; "
            f"the first tensor is {first}"
        )
    configs = [
        config_from_args(
            rank.args,
            ranks=len(stages[0]),
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


def _renamed(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors under transformers' names; CheckpointError if two names become one."""
    renamed: dict[str, StoredTensor] = {}
    for adept_name, tensor in tensors.items():
        name = _transformers_name(adept_name)
        if name in renamed:
            raise CheckpointError(f"{tensor.source}: tensor {adept_name} and another one both mean {name}")
        renamed[name] = tensor
    return renamed


def _transformers_name(adept_name: str) -> str:
    if adept_name == EMBEDDING:
        return "model.embed_tokens.weight"
    if adept_name == HEAD:
        return "lm_head.weight"
    if adept_name.startswith(_ENCODER):
        return "model." + adept_name.removeprefix(_ENCODER).replace(".self_attention.", ".self_attn.")
    return adept_name


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

"""Writes checkpoints: a Hugging Face directory, or a directory laid out as Adept's release is."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from adept_fast.checkpoint.adept_layout import RANK_FILE, TOKENIZER_FILE, TRACKER_FILE
from adept_fast.checkpoint.atomic import atomic_directory, require_free, require_space
from adept_fast.checkpoint.base import WEIGHT_DTYPES, Checkpoint, CheckpointError, StoredTensor, dtype_name
from adept_fast.checkpoint.huggingface import INDEX_FILE, SINGLE_FILE
from adept_fast.checkpoint.model_card import known_license, model_card
from adept_fast.checkpoint.save_tokenizer import (
    checked_tokenizer_json,
    generation_config,
    lost_in_adepts_format,
    pad_id,
    require_for_adept,
    size_of_files,
    tokenizer_config,
    vocabulary_listing,
)
from adept_fast.checkpoint.weight_files import TensorReference, size_of, write_safetensors, write_torch_file
from adept_fast.config import PersimmonConfig
from adept_fast.system.progress import progress_bar
from adept_fast.tokenizer.tokenizer import Tokenizer

DEFAULT_SHARD_BYTES = 5_000_000_000
ROOM_FOR_SMALL_FILES = 2**20  # configs and headers; the tokenizer is counted by its size
_ITERATION = 1  # Adept's code requires one; a converted checkpoint was never trained here


@dataclass(frozen=True)
class Saved:
    """A written checkpoint: its files by their names below ``path``, with sizes in bytes, and remarks."""

    path: Path
    files: dict[str, int]
    tensors: int
    tokenizer_check: str
    notes: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        return sum(self.files.values())


def save_huggingface(
    checkpoint: Checkpoint,
    destination: str | Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    license_name: str | None = None,
    progress: bool = False,
) -> Saved:
    """Write a directory that transformers loads, tokenizer included; it appears when it is complete.

    Args:
        checkpoint: the source; its tensors are read one at a time.
        destination: a new name, or an empty directory.
        dtype: that of the written weights (default: each as it is stored).
        max_shard_bytes: weights are split into files of at most this size (a larger tensor has its own).
        license_name: the licence in the model card (default: the licence in the source's model card).
        progress: whether to show progress on stderr.

    Raises CheckpointError if the destination is taken, the disk too full, or a weight too large for
    ``dtype``; TokenizerError if no tokenizer.json equals the tokenizer.
    """
    destination = Path(destination).expanduser()
    weights = _check_request(destination, checkpoint.tensors.values(), dtype, checkpoint.tokenizer)
    if max_shard_bytes < 1:
        raise CheckpointError(f"the shard size is {max_shard_bytes} bytes; expected at least 1")
    fast_tokenizer, check = checked_tokenizer_json(checkpoint.tokenizer)
    shards = split_into_shards(checkpoint.tensors.values(), dtype, max_shard_bytes)
    with (
        atomic_directory(destination) as directory,
        progress_bar(f"writing {destination.name}", weights, "B", shown=progress) as bar,
    ):
        for name, contents in _huggingface_texts(checkpoint, fast_tokenizer, shards, dtype):
            write_json(directory / name, contents)
        for name, data in checkpoint.tokenizer.vocabulary.files.items():
            if name != "tokenizer.json":
                (directory / name).write_bytes(data)
        card = model_card(
            checkpoint,
            destination.name,
            dtype or checkpoint.dtype,
            license_name or known_license(checkpoint.path),
        )
        (directory / "README.md").write_text(card, encoding="utf-8")
        for name, tensors in shards.items():
            write_safetensors(directory / name, tensors, dtype, bar.update)
        files = files_in(directory)
    return Saved(destination, files, len(checkpoint.tensors), check)


def save_adept(
    checkpoint: Checkpoint,
    destination: str | Path,
    *,
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> Saved:
    """Write a directory laid out as Adept's release, of one rank; it appears when it is complete.

    Arguments and errors are those of ``save_huggingface``, except those about tokenizer.json and shards;
    TokenizerError if the tokenizer is more than a sentencepiece model.
    """
    destination = Path(destination).expanduser()
    require_for_adept(checkpoint.tokenizer)
    tensors = {**checkpoint.tensors, **_rotary_tensors(checkpoint.config)}
    weights = _check_request(destination, tensors.values(), dtype, checkpoint.tokenizer)
    contents = {
        "args": _adept_args(checkpoint.config, dtype or checkpoint.dtype),
        "checkpoint_version": 3.0,
        "iteration": _ITERATION,
        "model": _adept_model(tensors),
    }
    with (
        atomic_directory(destination) as directory,
        progress_bar(f"writing {destination.name}", weights, "B", shown=progress) as bar,
    ):
        (directory / TRACKER_FILE).write_text(str(_ITERATION), encoding="ascii")
        (directory / TOKENIZER_FILE).write_bytes(checkpoint.tokenizer.model)
        (directory / "adept_vocab.vocab").write_text(
            vocabulary_listing(checkpoint.tokenizer), encoding="utf-8"
        )
        rank = directory / f"iter_{_ITERATION:07d}" / "mp_rank_00"
        rank.mkdir(parents=True)
        write_torch_file(rank / RANK_FILE, contents, tensors, dtype, bar.update)
        files = files_in(directory)
    notes = tuple(lost_in_adepts_format(checkpoint.tokenizer))
    return Saved(
        destination, files, len(checkpoint.tensors), "sentencepiece's own model, byte for byte", notes
    )


def _check_request(
    destination: Path, tensors: Iterable[StoredTensor], dtype: torch.dtype | None, tokenizer: Tokenizer
) -> int:
    """The bytes of weights to write; CheckpointError if writing them is bound to fail."""
    if dtype is not None and dtype not in WEIGHT_DTYPES.values():
        raise CheckpointError(f"the dtype is {dtype_name(dtype)}; expected float32, float16 or bfloat16")
    require_free(destination)
    weights = sum(size_of(tensor, dtype) for tensor in tensors)
    # Both formats list the vocabulary beside the model, in up to about four times its size.
    require_space(destination, weights + 5 * size_of_files(tokenizer) + ROOM_FOR_SMALL_FILES)
    return weights


def split_into_shards(
    tensors: Iterable[StoredTensor], dtype: torch.dtype | None, max_shard_bytes: int
) -> dict[str, list[StoredTensor]]:
    """File names → tensors, in order."""
    shards: list[list[StoredTensor]] = []
    room = 0
    for tensor in tensors:
        size = size_of(tensor, dtype)
        if size > room or not shards:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(tensor)
        room -= size
    if len(shards) == 1:
        return {SINGLE_FILE: shards[0]}
    return {
        f"model-{at:05d}-of-{len(shards):05d}.safetensors": shard for at, shard in enumerate(shards, start=1)
    }


def _huggingface_texts(
    checkpoint: Checkpoint,
    fast_tokenizer: dict[str, Any],
    shards: Mapping[str, list[StoredTensor]],
    dtype: torch.dtype | None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The names and contents of the JSON files."""
    tokenizer = checkpoint.tokenizer
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": pad_id(tokenizer),
    }
    stored = dtype_name(dtype or checkpoint.dtype)
    # transformers before 4.56 reads "torch_dtype".
    yield "config.json", checkpoint.config.to_dict() | ids | {"dtype": stored, "torch_dtype": stored}
    yield "generation_config.json", generation_config(tokenizer)
    yield "tokenizer.json", fast_tokenizer
    yield "tokenizer_config.json", tokenizer_config(checkpoint)
    if len(shards) > 1:
        yield INDEX_FILE, shard_index(shards, dtype)


def shard_index(shards: Mapping[str, list[StoredTensor]], dtype: torch.dtype | None) -> dict[str, Any]:
    """The contents of the index of the shards."""
    total = sum(size_of(tensor, dtype) for tensors in shards.values() for tensor in tensors)
    weight_map = {tensor.name: name for name, tensors in shards.items() for tensor in tensors}
    return {"metadata": {"total_size": total}, "weight_map": weight_map}


def _adept_args(config: PersimmonConfig, dtype: torch.dtype) -> argparse.Namespace:
    """The arguments with which Adept's code builds the same model."""
    theta = config.rope_theta
    return argparse.Namespace(
        num_layers=config.num_hidden_layers,
        encoder_num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        kv_channels=config.head_dim,
        seq_length=config.max_position_embeddings,
        max_position_embeddings=config.max_position_embeddings,
        padded_vocab_size=config.vocab_size,
        layernorm_epsilon=config.layer_norm_eps,
        attn_span_type="global_span",
        pos_emb="rotary",
        rotary_emb_base=int(theta) if theta == int(theta) else theta,  # an integer in Adept's own code
        rotary_pct=config.partial_rotary_factor,
        qk_layernorm="weights_per_layer" if config.qk_layernorm else "none",
        untie_embeddings=not config.tie_word_embeddings,
        sq_relu=True,
        bias_gelu_fusion=False,
        apply_residual_connection_post_layernorm=False,
        fp16=dtype == torch.float16,
        bf16=dtype == torch.bfloat16,
        tokenizer_type="SentencePiece",
        tensor_model_parallel_size=1,
        pipeline_model_parallel_size=1,
    )


def _adept_model(names: Iterable[str]) -> dict[str, Any]:
    """The nested dicts of Adept's release, in which the whole encoder is one flat dict."""
    encoder: dict[str, TensorReference] = {}
    language_model = {"embedding": {"word_embeddings": {}}, "encoder": encoder}
    model: dict[str, Any] = {"language_model": language_model}
    for name in names:
        reference = TensorReference(name)
        if name == "model.embed_tokens.weight":
            language_model["embedding"] = {"word_embeddings": {"weight": reference}}
        elif name == "lm_head.weight":
            model["word_embeddings_for_head"] = {"weight": reference}
        else:
            encoder[name.removeprefix("model.").replace(".self_attn.", ".self_attention.")] = reference
    return model


def _rotary_tensors(config: PersimmonConfig) -> dict[str, StoredTensor]:
    """The frequencies that Adept's code expects in each layer, although its args determine them."""
    names = [f"model.layers.{at}.self_attn.rotary_emb.inv_freq" for at in range(config.num_hidden_layers)]
    shape = (config.rotary_dim // 2,)
    read = partial(_inverse_frequencies, config)
    return {name: StoredTensor(name, shape, torch.float32, "the config", read) for name in names}


def _inverse_frequencies(config: PersimmonConfig) -> torch.Tensor:
    exponents = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32, device="cpu") / config.rotary_dim
    return 1.0 / config.rope_theta**exponents


def write_json(path: Path, contents: dict[str, Any]) -> None:
    """Write one JSON file."""
    # The vocabulary is long: with indentation each of its entries would be four lines.
    indent = None if path.name == "tokenizer.json" else 2
    path.write_text(json.dumps(contents, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8")


def files_in(directory: Path) -> dict[str, int]:
    """The names of all files below ``directory``, and their sizes."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.stat().st_size for path in files}

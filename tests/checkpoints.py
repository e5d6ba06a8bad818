"""Builds checkpoints for tests, as Hugging Face or as Adept would write them, and checks what is read."""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from adept_fast.checkpoint import Checkpoint, CheckpointError, demo_path, open_checkpoint
from adept_fast.config import PersimmonConfig

ITERATION = 1251
_SPLIT_ROWS = ("embed_tokens.weight", "lm_head.weight", "query_key_value.weight", "query_key_value.bias")
_SPLIT_COLUMNS = ("self_attn.dense.weight", "dense_4h_to_h.weight")


def demo_tokenizer() -> bytes:
    """The model of the shipped tokenizer: 4096 pieces, so test configs need vocab_size ≥ 4096."""
    return (demo_path() / "tokenizer.model").read_bytes()


def small_config(**changes: Any) -> PersimmonConfig:
    """A small model in which no two sizes that could be confused are equal; divisible by up to 4 ranks."""
    values: dict[str, Any] = {
        "vocab_size": 4160,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "rope_theta": 25000.0,
        "bos_token_id": 1,
        "eos_token_id": 1,
    }
    return PersimmonConfig(**(values | changes))


def random_tensors(
    config: PersimmonConfig, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """transformers' names → tensors of a scale at which logits have clear gaps."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in config.tensor_shapes().items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("layernorm.weight"):
            tensor = 1 + 0.1 * noise
        elif name.endswith("bias"):
            tensor = 0.05 * noise
        elif name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensor = 0.3 * noise
        else:
            tensor = 0.1 * noise
        tensors[name] = tensor.to(dtype)
    return tensors


def write_huggingface(
    path: Path,
    config: PersimmonConfig,
    tensors: Mapping[str, Tensor],
    tokenizer_model: bytes,
    shards: int = 1,
    **config_overrides: Any,
) -> Path:
    """A directory of config.json, tokenizer.model and safetensors in ``shards`` files; its path.

    ``config_overrides`` replace entries of config.json; ``...`` as the value removes one.
    """
    path.mkdir(parents=True, exist_ok=True)
    values = config.to_dict() | config_overrides
    values = {name: value for name, value in values.items() if value is not ...}
    (path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    (path / "tokenizer.model").write_bytes(tokenizer_model)
    metadata = {"format": "pt"}
    if shards == 1:
        save_file(dict(tensors), path / "model.safetensors", metadata)
        return path
    weight_map = {}
    for shard in range(shards):
        file_name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensor for at, (name, tensor) in enumerate(tensors.items()) if at % shards == shard}
        save_file(part, path / file_name, metadata)
        weight_map.update(dict.fromkeys(part, file_name))
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return path


def write_adept(
    path: Path,
    config: PersimmonConfig,
    tensors: Mapping[str, Tensor],
    tokenizer_model: bytes,
    ranks: int = 1,
    tar: bool = False,
    qk_mode: str | None = None,
    **args_overrides: Any,
) -> Path:
    """Adept's release at ``path``: a directory, or an uncompressed tar with one top-level folder; its path.

    ``args_overrides`` replace attributes of the args; ``...`` as the value removes one.
    """
    files = adept_files(config, tensors, tokenizer_model, ranks, qk_mode, **args_overrides)
    return write_tar(path, files) if tar else write_directory(path, files)


def adept_files(
    config: PersimmonConfig,
    tensors: Mapping[str, Tensor],
    tokenizer_model: bytes,
    ranks: int = 1,
    qk_mode: str | None = None,
    **args_overrides: Any,
) -> dict[str, bytes]:
    """The files of a release: path below its root → contents."""
    args = adept_args(config, ranks, qk_mode, **args_overrides)
    files = {
        rank_path(rank): saved(
            {"model": adept_model(tensors, rank, ranks), "args": args, "iteration": ITERATION}
        )
        for rank in range(ranks)
    }
    files["latest_checkpointed_iteration.txt"] = f"{ITERATION}".encode()
    files["adept_vocab.model"] = tokenizer_model
    return files


def write_one_rank(path: Path, contents: Any, tokenizer_model: bytes, **options: Any) -> Path:
    """A release whose only rank file is what torch.save makes of ``contents``; its path."""
    files = {rank_path(0): saved(contents, **options), "adept_vocab.model": tokenizer_model}
    return write_directory(path, files)


def rank_path(rank: int) -> str:
    return f"iter_{ITERATION:07d}/mp_rank_{rank:02d}/model_optim_rng.pt"


def saved(contents: Any, **options: Any) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(contents, buffer, **options)
    return buffer.getvalue()


def adept_args(
    config: PersimmonConfig, ranks: int = 1, qk_mode: str | None = None, **overrides: Any
) -> argparse.Namespace:
    """The training arguments that describe ``config``, among some that do not matter."""
    values: dict[str, Any] = {
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.intermediate_size,
        "num_attention_heads": config.num_attention_heads,
        "kv_channels": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "padded_vocab_size": config.vocab_size,
        "layernorm_epsilon": config.layer_norm_eps,
        "pos_emb": "rotary",
        "rotary_emb_base": int(config.rope_theta),
        "rotary_pct": config.partial_rotary_factor,
        "qk_layernorm": qk_mode or ("weights_per_layer" if config.qk_layernorm else "none"),
        "untie_embeddings": None if config.tie_word_embeddings else True,
        "sq_relu": True,
        "attn_span_type": "global_span",
        "apply_residual_connection_post_layernorm": False,
        "tensor_model_parallel_size": ranks,
        "pipeline_model_parallel_size": 1,
        "params_dtype": torch.bfloat16,
        "lr": 1e-4,
        "data_path": ["train", "valid"],
    }
    values = {name: value for name, value in (values | overrides).items() if value is not ...}
    return argparse.Namespace(**values)


def adept_model(tensors: Mapping[str, Tensor], rank: int = 0, ranks: int = 1) -> dict[str, Any]:
    """A rank's share of the tensors, in the nested dicts that Adept's code saves."""
    encoder: OrderedDict[str, Tensor] = OrderedDict()
    language_model = {"embedding": {"word_embeddings": OrderedDict()}, "encoder": encoder}
    model: dict[str, Any] = {"language_model": language_model}
    for name, tensor in tensors.items():
        share = _share(name, tensor, rank, ranks)
        if name == "model.embed_tokens.weight":
            language_model["embedding"]["word_embeddings"]["weight"] = share
        elif name == "lm_head.weight":
            model["word_embeddings_for_head"] = OrderedDict(weight=share)
        else:
            adept_name = name.removeprefix("model.").replace(".self_attn.", ".self_attention.")
            encoder[adept_name] = share
            if adept_name.endswith("query_key_value.weight"):
                encoder[adept_name.replace("query_key_value.weight", "rotary_emb.inv_freq")] = torch.ones(4)
    return model


def _share(name: str, tensor: Tensor, rank: int, ranks: int) -> Tensor:
    if ranks > 1 and (name.endswith(_SPLIT_ROWS) or ".dense_h_to_4h." in name):
        return tensor.chunk(ranks, dim=0)[rank].clone()  # torch.save keeps all of what a view looks at
    if ranks > 1 and name.endswith(_SPLIT_COLUMNS):
        return tensor.chunk(ranks, dim=1)[rank].contiguous()
    return tensor


def write_directory(path: Path, files: Mapping[str, bytes]) -> Path:
    for name, contents in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(contents)
    return path


def write_tar(path: Path, files: Mapping[str, bytes], top: str = "release/", mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, contents in files.items():
            member = tarfile.TarInfo(top + name)
            member.size = len(contents)
            archive.addfile(member, io.BytesIO(contents))
    return path


def assert_holds(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
    """The checkpoint's tensors are those that its config calls for, and equal these bit for bit."""
    assert list(checkpoint.tensors) == list(checkpoint.config.tensor_shapes())
    for name, stored in checkpoint.tensors.items():
        expected, found = tensors[name], stored.read()
        assert (stored.name, stored.shape, stored.dtype) == (name, tuple(expected.shape), expected.dtype)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype), name
        bits = (found.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8))
        assert torch.equal(*bits), f"{name} has other values"


def assert_refused(path: Path, *needles: str, error: type[ValueError] = CheckpointError) -> str:
    """The one sentence with which opening ``path`` fails; it has all ``needles``."""
    with pytest.raises(error) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message, message
    for needle in needles:
        assert needle in message, f"{needle!r} is not in {message!r}"
    return message


def outcome(path: Path, tensors: Mapping[str, Tensor]) -> str | None:
    """The sentence that refuses ``path``, at opening or at reading, or None where it holds these tensors."""
    try:
        assert_holds(open_checkpoint(path), tensors)
    except ValueError as error:
        return str(error)
    return None


def record_of(contents: bytes, name: str) -> bytes:
    """A record of a .pt, such as ``data.pkl``."""
    with zipfile.ZipFile(io.BytesIO(contents)) as archive:
        return archive.read(f"archive/{name}")


def rezipped(
    contents: bytes,
    records: Mapping[str, bytes] | None = None,
    *,
    without: tuple[str, ...] = (".format_version",),
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    """A .pt packed again by Python's zipfile, with these records in place of those of the same name.

    ``.format_version`` goes because it vouches for torch's alignment, which zipfile does not keep.
    """
    replaced = {f"archive/{name}": record for name, record in (records or {}).items()}
    dropped = {f"archive/{name}" for name in without}
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(contents)) as old,
        zipfile.ZipFile(buffer, "w", compression) as new,
    ):
        for entry in old.infolist():
            if entry.filename not in dropped:
                new.writestr(entry.filename, replaced.get(entry.filename, old.read(entry)))
    return buffer.getvalue()

"""Writes a model: config.json, and its weights in one file or in shards."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from adept_fast.arguments import ParameterError, flag, path_or_str
from adept_fast.checkpoint import CheckpointError, StoredTensor, dtype_name
from adept_fast.checkpoint.atomic import flush, partial_directory, require_space
from adept_fast.checkpoint.huggingface import CONFIG_FILE, GENERATION_FILE, INDEX_FILE, SINGLE_FILE
from adept_fast.checkpoint.save import ROOM_FOR_SMALL_FILES, shard_index, split_into_shards, write_json
from adept_fast.checkpoint.weight_files import size_of, write_safetensors
from adept_fast.system.short_text import short_repr

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def save_model(
    model: Any,
    save_directory: str | Path,
    *,
    is_main_process: bool = True,
    state_dict: Mapping[str, Tensor] | None = None,
    push_to_hub: bool = False,
    max_shard_size: int | str = "50GB",
    safe_serialization: bool = True,
    variant: str | None = None,
    save_peft_format: bool = True,
    token: str | bool | None = None,
) -> None:
    """Write a model's config and weights; ``PersimmonPreTrainedModel.save_pretrained`` tells how.

    Args:
        is_main_process: False writes nothing.
        state_dict: the weights to write instead of the model's own, by the same names.
        max_shard_size: bytes of a file, or such as ``"5GB"``; larger weights are in several, with an index.
        save_peft_format, token: without effect.

    Raises ParameterError for ``push_to_hub``, a ``variant``, or ``safe_serialization=False``.
    """
    path = Path(path_or_str("save_directory", save_directory)).expanduser()
    if flag("push_to_hub", push_to_hub):
        raise ParameterError(
            "push_to_hub is True; expected False, as nothing is uploaded here: "
            "huggingface_hub.upload_folder uploads a saved directory"
        )
    if not flag("safe_serialization", safe_serialization):
        raise ParameterError("safe_serialization is False; expected True, as no pickle is written")
    if variant is not None:
        raise ParameterError(f"variant is {short_repr(variant)}; expected None")
    shard_bytes = _bytes("max_shard_size", max_shard_size)
    if not is_main_process:
        return
    tensors = _tensors(model, model.state_dict() if state_dict is None else state_dict)
    shards = split_into_shards(tensors, None, shard_bytes)
    path.mkdir(parents=True, exist_ok=True)
    other = SINGLE_FILE if len(shards) > 1 else INDEX_FILE
    if (path / other).exists():
        raise CheckpointError(f"{path}: has {other} of other weights; expected another directory")
    texts = {CONFIG_FILE: _config(model)}
    if (generation := getattr(model, "generation_config", None)) is not None:
        texts[GENERATION_FILE] = generation.to_diff_dict()
    if len(shards) > 1:
        texts[INDEX_FILE] = shard_index(shards, None)
    beside = path / "weights"  # not a file's name; partial files are in a directory beside it
    require_space(beside, sum(size_of(tensor, None) for tensor in tensors) + ROOM_FOR_SMALL_FILES)
    with partial_directory(beside) as directory:
        for name, shard in shards.items():
            write_safetensors(directory / name, shard, None, lambda size: None)
        for name, values in texts.items():
            write_json(directory / name, values)
        for name in (*shards, *texts):
            flush(directory / name)
        for name in (*shards, *texts):
            os.replace(directory / name, path / name)
        flush(path)


def _tensors(model: Any, state: Mapping[str, Tensor]) -> list[StoredTensor]:
    tied = model.config.tie_word_embeddings
    return [
        StoredTensor(name, tuple(tensor.shape), tensor.dtype, "the model", partial(_on_cpu, tensor))
        for name, tensor in state.items()
        if not (name == "lm_head.weight" and tied)
    ]


def _config(model: Any) -> dict[str, Any]:
    values: dict[str, Any] = model.config.to_dict()
    values.pop("_name_or_path", None)  # where it was loaded from is of no use to others
    return values | {"architectures": [type(model).__name__], "dtype": dtype_name(model.dtype)}


def _bytes(name: str, size: int | str) -> int:
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    if isinstance(size, str) and (found := re.fullmatch(r"(\d{1,9}) ?([KMG]I?B)", size.strip().upper())):
        return max(1, int(found[1]) * _UNITS[found[2]])
    raise ParameterError(f"{name} is {short_repr(size)}; expected bytes, or such as '5GB'")


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu()

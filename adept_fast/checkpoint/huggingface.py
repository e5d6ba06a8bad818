"""A Hugging Face directory: config.json, model.safetensors (or an index of shards), a tokenizer."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from adept_fast.checkpoint.base import (
    Checkpoint,
    CheckpointError,
    StoredTensor,
    check_tensors,
    check_vocabulary,
)
from adept_fast.checkpoint.tokenizer_files import JSON_FILES, tokenizer_of
from adept_fast.config import PersimmonConfig
from adept_fast.tokenizer import Tokenizer

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# safetensors' names for dtypes; those that no weight may have are refused later, by name.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def is_huggingface(path: Path) -> bool:
    return (path / "config.json").is_file()


def open_huggingface(path: Path) -> Checkpoint:
    """Open a Hugging Face directory and check its structure; no weight is read yet.

    Raises CheckpointError (or ConfigError, TokenizerError) naming the file, the tensor and what was expected.
    """
    config = PersimmonConfig.from_json(path / "config.json")
    tokenizer = read_tokenizer(path, read_json(path / "config.json"), config.vocab_size)
    check_vocabulary(path, config, tokenizer)
    tensors = check_tensors(path, config, _stored_tensors(path))
    return Checkpoint(path, "huggingface", config, tensors, tokenizer)


def read_tokenizer(path: Path, config: dict[str, Any], rows: int) -> Tokenizer:
    """The directory's tokenizer, beside its ``config.json``, for so many rows; see ``tokenizer_of``."""
    contents = {name: read_json(path / name) for name in JSON_FILES if (path / name).is_file()}
    return tokenizer_of(path, contents | {"config.json": config}, rows)


def _stored_tensors(path: Path) -> dict[str, StoredTensor]:
    if (path / INDEX_FILE).is_file():
        return _tensors_of_index(path)
    if (path / SINGLE_FILE).is_file():
        return tensors_of_file(path / SINGLE_FILE)
    raise CheckpointError(f"{path}: neither {SINGLE_FILE} nor {INDEX_FILE} is there")


def _tensors_of_index(path: Path) -> dict[str, StoredTensor]:
    index = path / INDEX_FILE
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing; expected tensor names mapped to file names")
    shards: dict[str, dict[str, StoredTensor]] = {}
    for name, file_name in weight_map.items():
        if (
            not isinstance(file_name, str)
            or file_name != Path(file_name).name
            or file_name in ("", ".", "..")
        ):
            raise CheckpointError(f"{index}: {name} is in {file_name!r}; expected a file of this directory")
        if file_name not in shards:
            if not (path / file_name).is_file():
                raise CheckpointError(f"{index}: names {file_name}, which is not there")
            shards[file_name] = tensors_of_file(path / file_name)
        if name not in shards[file_name]:
            raise CheckpointError(
                f"{path / file_name}: tensor {name}, which the index puts there, is missing"
            )
    stored = {name: tensor for shard in shards.values() for name, tensor in shard.items()}
    unlisted = [name for name in stored if name not in weight_map]
    if unlisted:
        raise CheckpointError(f"{stored[unlisted[0]].source}: tensor {unlisted[0]} is not in the index")
    return {name: shards[file_name][name] for name, file_name in weight_map.items()}


def tensors_of_file(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, by name; CheckpointError where it is not a valid one."""
    # safetensors checks the header here: its length, every offset, overlaps, and the file's size.
    try:
        opened = safe_open(file, framework="pt")
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
        return {
            name: StoredTensor(
                name=name,
                shape=tuple(view.get_shape()),
                dtype=_DTYPES[view.get_dtype()],
                source=str(file),
                read=partial(_read, opened, file, name),
            )
            for name, view in slices.items()
        }
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: not a valid safetensors file ({error})") from error
    except KeyError as error:
        raise CheckpointError(f"{file}: holds a tensor of the unknown dtype {error}") from error


def _read(opened: Any, file: Path, name: str) -> Tensor:
    try:
        tensor: Tensor = opened.get_tensor(name)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{file}: tensor {name} cannot be read ({error})") from error
    return tensor


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; CheckpointError where there is no such thing."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds a {type(values).__name__}; expected a JSON object")
    return values

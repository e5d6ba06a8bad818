"""A Hugging Face directory: config.json, model.safetensors or pytorch_model.bin, tokenizer.model."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from adept_fast.checkpoint.base import (
    Checkpoint,
    CheckpointError,
    StoredTensor,
    bounded_names,
    check_tensors,
    check_vocabulary,
)
from adept_fast.checkpoint.tensor_names import unwrap_names
from adept_fast.checkpoint.torch_bin import BIN_FILE, BIN_INDEX_FILE, tensors_of_bin
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
    tokenizer = read_tokenizer(path)
    check_vocabulary(path, config, tokenizer)
    weights = stored_weights(path)
    tensors = check_tensors(path, config, unwrap_names(weights.tensors, config.tensor_shapes()))
    left_unread = bounded_names(weights.left_unread)
    return Checkpoint(path, "huggingface", config, tensors, tokenizer, left_unread=left_unread)


def read_tokenizer(path: Path) -> Tokenizer:
    """The directory's ``tokenizer.model``, with BOS put first exactly when its other files say so."""
    model = path / "tokenizer.model"
    if not model.is_file():
        raise CheckpointError(f"{path}: tokenizer.model is missing")
    settings = read_json(path / "tokenizer_config.json") if (path / "tokenizer_config.json").is_file() else {}
    add_bos = settings.get("add_bos_token")
    if not isinstance(add_bos, bool):
        add_bos = _template_starts_with_special_token(path / "tokenizer.json")
    bos_token = settings.get("bos_token")
    if isinstance(bos_token, dict):  # an added token, spelled out
        bos_token = bos_token.get("content")
    return Tokenizer.from_file(
        model, add_bos=add_bos, bos_token=bos_token if isinstance(bos_token, str) else None
    )


def _template_starts_with_special_token(path: Path) -> bool:
    """Whether the post-processor of a ``tokenizer.json`` puts a special token before a single text."""
    if not path.is_file():
        return False
    processor = read_json(path).get("post_processor")
    if not isinstance(processor, dict):
        return False
    steps = processor.get("processors") if processor.get("type") == "Sequence" else [processor]
    templates = [step.get("single") for step in steps or [] if isinstance(step, dict)]
    return any(isinstance(single, list) and single and "SpecialToken" in single[0] for single in templates)


class StoredWeights(NamedTuple):
    """The tensors of a directory by their names, and the names that its pickles hold beside them."""

    tensors: dict[str, StoredTensor]
    left_unread: tuple[str, ...]


def stored_weights(path: Path) -> StoredWeights:
    """The weights in a directory's safetensors files, or where it has none, in those of torch.save.

    Raises CheckpointError where there are neither, or a file is not valid.
    """
    left_unread: set[str] = set()
    read_bin = partial(tensors_of_bin, left_unread=left_unread)
    for single, index, read in (
        (SINGLE_FILE, INDEX_FILE, tensors_of_file),
        (BIN_FILE, BIN_INDEX_FILE, read_bin),
    ):
        if (path / index).is_file():
            return StoredWeights(_tensors_of_index(path / index, read), tuple(sorted(left_unread)))
        if (path / single).is_file():
            return StoredWeights(read(path / single), tuple(sorted(left_unread)))
    raise CheckpointError(
        f"{path}: neither {SINGLE_FILE} nor {INDEX_FILE} is there, nor {BIN_FILE} or {BIN_INDEX_FILE}"
    )


def _tensors_of_index(
    index: Path, read: Callable[[Path], dict[str, StoredTensor]]
) -> dict[str, StoredTensor]:
    path = index.parent
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
            shards[file_name] = read(path / file_name)
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

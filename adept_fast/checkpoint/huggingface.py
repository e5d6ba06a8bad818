"""A Hugging Face directory: config.json, model.safetensors or pytorch_model.bin, a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from adept_fast.checkpoint.base import (
    Checkpoint,
    CheckpointError,
    StoredTensor,
    bounded_names,
    check_model,
    check_vocabulary,
    unwrap_names,
)
from adept_fast.checkpoint.safetensors_file import open_safetensors
from adept_fast.checkpoint.tokenizer_files import JSON_FILES, tokenizer_of
from adept_fast.checkpoint.torch_file import tensors_of_bin
from adept_fast.config import ConfigError, PersimmonConfig
from adept_fast.system import json_file
from adept_fast.system.regular_file import FileError, is_there
from adept_fast.system.short_text import short_repr, shortened
from adept_fast.tokenizer.tokenizer import Tokenizer

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# The names that transformers used before safetensors.
BIN_FILE = "pytorch_model.bin"
BIN_INDEX_FILE = "pytorch_model.bin.index.json"
CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"


def read_config(path: Path) -> dict[str, Any] | None:
    """The contents of a directory's ``config.json``, None if it has none; ConfigError names the file."""
    if not is_there(path / CONFIG_FILE):
        return None
    try:
        return json_file.read_json(path / CONFIG_FILE)
    except FileError as error:
        raise ConfigError(str(error)) from error


def open_huggingface(path: Path, values: dict[str, Any], *, mmap: bool = True) -> Checkpoint:
    """Open a Hugging Face directory, whose ``config.json`` holds ``values``, and check its structure.

    No weight is read yet. Raises CheckpointError, ConfigError or TokenizerError, which name the file, the
    tensor and the allowed value.
    """
    config = PersimmonConfig.from_contents(values, path / CONFIG_FILE)
    tokenizer = read_tokenizer(path, values, config.vocab_size)
    check_vocabulary(path, config, tokenizer)
    weights = stored_weights(path, mmap=mmap)
    tensors = check_model(path, config, unwrap_names(weights.tensors, config.tensor_shapes()))
    left_unread = bounded_names(weights.left_unread)
    return Checkpoint(path, "huggingface", config, tensors, tokenizer, left_unread=left_unread, mmap=mmap)


def read_tokenizer(path: Path, config: dict[str, Any], rows: int) -> Tokenizer:
    """The directory's tokenizer for an embedding of ``rows`` rows; see ``tokenizer_of``."""
    contents = {name: read_json(path / name) for name in JSON_FILES if is_there(path / name)}
    return tokenizer_of(path, contents | {"config.json": config}, rows)


class StoredWeights(NamedTuple):
    """The tensors of a directory by name, and the unknown names in its pickles."""

    tensors: dict[str, StoredTensor]
    left_unread: tuple[str, ...]


def stored_weights(path: Path, *, mmap: bool = True) -> StoredWeights:
    """The weights in a directory's safetensors files, or if it has none, in those of torch.save.

    Raises CheckpointError if there are neither, not all, or a file is not valid.
    """
    left_unread: set[str] = set()

    def of_safetensors(file: Path) -> dict[str, StoredTensor]:
        return open_safetensors(file, mmap=mmap).tensors

    def of_bin(file: Path) -> dict[str, StoredTensor]:
        return tensors_of_bin(file, left_unread, mmap=mmap)

    for single, index, read in (
        (SINGLE_FILE, INDEX_FILE, of_safetensors),
        (BIN_FILE, BIN_INDEX_FILE, of_bin),
    ):
        if is_there(path / index):
            return StoredWeights(_tensors_of_index(path / index, read), tuple(sorted(left_unread)))
        if is_there(path / single):
            return StoredWeights(read(path / single), tuple(sorted(left_unread)))
    raise CheckpointError(
        f"{path}: neither {SINGLE_FILE} nor {INDEX_FILE} is there, nor {BIN_FILE} or {BIN_INDEX_FILE}"
    )


def _tensors_of_index(
    index: Path, read: Callable[[Path], dict[str, StoredTensor]]
) -> dict[str, StoredTensor]:
    path = index.parent
    weight_map = read_weight_map(index)
    shards: dict[str, dict[str, StoredTensor]] = {}
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or file_name != Path(file_name).name or file_name in ("", ".."):
            raise CheckpointError(
                f"{index}: {shortened(name)} is in {short_repr(file_name)}; expected a file of this directory"
            )
        if file_name not in shards:
            if not is_there(path / file_name):
                raise CheckpointError(f"{index}: names {shortened(file_name)}, which is not there")
            shards[file_name] = read(path / file_name)
        if name not in shards[file_name]:
            raise CheckpointError(
                f"{path / file_name}: tensor {shortened(name)}, which the index puts there, is missing"
            )
    stored = {name: tensor for shard in shards.values() for name, tensor in shard.items()}
    unlisted = [name for name in stored if name not in weight_map]
    if unlisted:
        raise CheckpointError(f"{stored[unlisted[0]].source}: tensor {unlisted[0]} is not in the index")
    return {name: shards[file_name][name] for name, file_name in weight_map.items()}


def read_weight_map(index: Path) -> dict[str, Any]:
    """Tensor name → file name, unchecked, from an index; CheckpointError if it has no such object."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing; expected tensor names mapped to file names")
    return weight_map


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; CheckpointError if it is missing or malformed."""
    try:
        return json_file.read_json(path)
    except FileError as error:
        raise CheckpointError(str(error)) from error

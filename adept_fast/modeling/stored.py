"""The config and the weights of a checkpoint, as the modeling classes read them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from adept_fast.arguments import ParameterError, path_or_str
from adept_fast.checkpoint import StoredTensor, open_checkpoint
from adept_fast.checkpoint.base import unwrap_names, unwrapped_name
from adept_fast.checkpoint.huggingface import CONFIG_FILE, read_config, stored_weights
from adept_fast.checkpoint.native import is_native, open_native
from adept_fast.config import PersimmonConfig as Architecture
from adept_fast.system.short_text import short_repr

HEADS = ("lm_head.weight", "score.weight", "score.bias")
_DECODER = ("embed_tokens.", "layers.", "final_layernorm.")


class Stored(NamedTuple):
    """The values of a ``config.json``, and the tensors by their names in a model with a head."""

    config: dict[str, Any]
    tensors: Mapping[str, StoredTensor]


def name_of(path_or_name: object, subfolder: str = "") -> str | Path:
    """What a caller named: a path or a hub id; with ``subfolder`` a folder below a directory that is here.

    Raises ParameterError for another type, or for a subfolder that is not below the directory.
    """
    name = path_or_str("pretrained_model_name_or_path", path_or_name)
    if not subfolder:
        return name
    below = Path(path_or_str("subfolder", subfolder))
    if below.is_absolute() or ".." in below.parts:
        raise ParameterError(f"subfolder is {short_repr(subfolder)}; expected a folder below the directory")
    return Path(name).expanduser() / below


def config_values(path: Path) -> dict[str, Any]:
    """The values of a checkpoint's ``config.json``, or what they would be. Raises as ``open_stored`` does."""
    values = read_config(path) if path.is_dir() else None
    if values is None or is_native(values):
        return open_stored(path, mmap=True).config
    Architecture.from_contents(values, path / CONFIG_FILE)
    return values


def open_stored(path: Path, *, mmap: bool) -> Stored:
    """Open a checkpoint of any format that the runtime reads; a Hugging Face directory needs no tokenizer.

    Raises CheckpointError or ConfigError, which name the file.
    """
    values = read_config(path) if path.is_dir() else None
    if values is None or is_native(values):
        checkpoint = (
            open_checkpoint(path, mmap=mmap) if values is None else open_native(path, values, mmap=mmap)
        )
        return Stored(checkpoint.config.to_dict(), checkpoint.tensors)
    architecture = Architecture.from_contents(values, path / CONFIG_FILE)
    stored = stored_weights(path, mmap=mmap).tensors
    unwrapped = [unwrapped_name(name) for name in stored]
    prefix = "model." if any(name.startswith(_DECODER) for name in unwrapped) else ""
    required = (name.removeprefix(prefix) for name in architecture.tensor_shapes() if name not in HEADS)
    return Stored(
        values, {full_name(name): tensor for name, tensor in unwrap_names(stored, required).items()}
    )


def of_state_dict(config: dict[str, Any], tensors: Mapping[str, Tensor]) -> Stored:
    """Weights in memory, by their names in a model with a head or in the decoder alone."""

    def stored(name: str, tensor: Tensor) -> StoredTensor:
        return StoredTensor(name, tuple(tensor.shape), tensor.dtype, "state_dict", tensor.detach)

    return Stored(config, {full_name(name): stored(name, tensor) for name, tensor in tensors.items()})


def full_name(name: str) -> str:
    """The name in a model with a head; the decoder alone has names without the prefix."""
    return f"model.{name}" if name.startswith(_DECODER) else name

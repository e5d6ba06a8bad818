"""The base class of all models: config, initialisation, loading and saving."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from adept_fast.arguments import ParameterError, flag, optional_text, path_or_str
from adept_fast.checkpoint import (
    WEIGHT_DTYPES,
    CheckpointError,
    StoredTensor,
    dtype_name,
    locate,
    open_checkpoint,
)
from adept_fast.checkpoint.atomic import flush, partial_directory, require_space
from adept_fast.checkpoint.base import FLOATS, check_tensors, unwrap_names, unwrapped_name, without_derived
from adept_fast.checkpoint.huggingface import (
    CONFIG_FILE,
    INDEX_FILE,
    SINGLE_FILE,
    read_config,
    stored_weights,
)
from adept_fast.checkpoint.native import is_native, open_native
from adept_fast.checkpoint.save import ROOM_FOR_SMALL_FILES, write_json
from adept_fast.checkpoint.weight_files import read_as, size_of, write_safetensors
from adept_fast.config import ConfigError
from adept_fast.config import PersimmonConfig as Architecture
from adept_fast.modeling.config import PersimmonConfig
from adept_fast.system.mapped_files import release_pages
from adept_fast.system.short_text import short_repr

_DECODER = ("embed_tokens.", "layers.", "final_layernorm.")
_HEADS = ("lm_head.weight", "score.weight", "score.bias")

Model = TypeVar("Model", bound="PersimmonPreTrainedModel")


class PersimmonPreTrainedModel(nn.Module):
    """A decoder with or without a head. New weights are random, initialised like those of transformers."""

    base_model_prefix = "model"
    head_names: tuple[str, ...] = ()
    gradient_checkpointing = False

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        self.config = PersimmonConfig.of(config)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def num_parameters(self, only_trainable: bool = False) -> int:
        return sum(each.numel() for each in self.parameters() if each.requires_grad or not only_trainable)

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.get_submodule(f"{self.base_model_prefix}.embed_tokens".lstrip("."))
        return embeddings

    def gradient_checkpointing_enable(self) -> None:
        """In training, keep only the input of each layer and recompute the rest for the gradients."""
        self._set_gradient_checkpointing(True)

    def gradient_checkpointing_disable(self) -> None:
        self._set_gradient_checkpointing(False)

    def _set_gradient_checkpointing(self, enabled: bool) -> None:
        for module in self.modules():
            if isinstance(module, PersimmonPreTrainedModel):
                module.gradient_checkpointing = enabled

    def returns_dict(self, return_dict: bool | None) -> bool:
        return self.config.return_dict if return_dict is None else return_dict

    def tie_weights(self) -> None:
        """Share the parameters that the config ties."""

    def initialise(self) -> None:
        """Initialise the modules of this class, with deviation ``config.initializer_range``."""
        for child in self.children():
            if not isinstance(child, PersimmonPreTrainedModel):
                _initialise(child, self.config.initializer_range)
        self.tie_weights()

    @classmethod
    def from_pretrained(
        cls: type[Model],
        path: str | Path,
        *,
        revision: str | None = None,
        dtype: torch.dtype | str = "auto",
        device: torch.device | str = "cpu",
        config: Architecture | None = None,
        mmap: bool = True,
        **changes: Any,
    ) -> Model:
        """Load from a local directory, ``"demo"``, or anything that ``Runtime.load`` takes; in eval mode.

        A repository of the hub needs no tokenizer. If the checkpoint has no weights for the head, they are
        initialised, with a warning.

        Args:
            revision: of a hub id: a branch, a tag or a commit; None for ``main``.
            dtype: ``"auto"``: as stored; or float32, float16 or bfloat16, as a torch.dtype or a name.
            config: replaces the checkpoint's.
            mmap: read the weights memory-mapped, or copied, as ``Runtime.load`` does.
            changes: fields of the config to change, such as ``num_labels=3``.

        Raises CheckpointError or ConfigError naming the file, the tensor and what was expected, and
        ParameterError for an argument of another type.
        """
        path, device = path_or_str("path", path), _chosen_device(device)
        if config is not None and not isinstance(config, Architecture):
            raise ConfigError(f"config is {short_repr(config)}; expected a PersimmonConfig, or None")
        path = locate(path, optional_text("revision", revision), tokenizer=False).path
        found, stored = _open(path, flag("mmap", mmap))
        config = PersimmonConfig.of(config or found)
        if changes:
            config = _changed(config, changes)
        with torch.device("meta"):
            model = cls(config)
        wanted = _wanted(model)
        missing = [name for name in wanted if name not in stored and name in cls.head_names]
        expected = {name: (shape, FLOATS) for name, shape in wanted.items() if name not in missing}
        used = {name: tensor for name, tensor in stored.items() if name in expected or name not in _HEADS}
        check_tensors(path, expected, without_derived(used))
        model.to(dtype=_chosen_dtype(dtype, stored))
        model.to_empty(device=device)
        model.tie_weights()
        if missing:
            _initialise_missing(model, missing)
            warnings.warn(
                f"{path}: has no {' and no '.join(missing)}; these weights are random and need training",
                stacklevel=2,
            )
        parameters = {_full_name(name): tensor for name, tensor in model.state_dict().items()}
        with torch.no_grad():
            for name in expected:
                values = read_as(stored[name], model.dtype)
                parameters[name].copy_(values)
                release_pages(values)
        return model.eval()

    def save_pretrained(self, path: str | Path) -> None:
        """Write config.json and model.safetensors, which the class of this name in transformers loads too.

        Files of these names are replaced once both are on disk; other files stay. No tokenizer is written.

        Raises CheckpointError if the directory holds a checkpoint in shards, or the disk is too full.
        """
        path = Path(path_or_str("path", path)).expanduser()
        path.mkdir(parents=True, exist_ok=True)
        if (path / INDEX_FILE).exists():
            raise CheckpointError(f"{path}: has {INDEX_FILE} of other weights; expected another directory")
        tensors = [
            StoredTensor(name, tuple(tensor.shape), tensor.dtype, "the model", partial(_on_cpu, tensor))
            for name, tensor in self.state_dict().items()
            if not (name == "lm_head.weight" and self.config.tie_word_embeddings)
        ]
        beside = path / "weights"  # not a file's name; partial files are in a directory beside it
        require_space(beside, sum(size_of(tensor, None) for tensor in tensors) + ROOM_FOR_SMALL_FILES)
        stored = dtype_name(self.dtype)
        values = self.config.to_dict() | {"architectures": [type(self).__name__], "dtype": stored}
        with partial_directory(beside) as directory:
            write_safetensors(directory / SINGLE_FILE, tensors, None, lambda size: None)
            write_json(directory / CONFIG_FILE, values)
            for name in (SINGLE_FILE, CONFIG_FILE):
                flush(directory / name)
            for name in (SINGLE_FILE, CONFIG_FILE):
                os.replace(directory / name, path / name)
            flush(path)


def _initialise(module: nn.Module, deviation: float) -> None:
    for each in module.modules():
        if isinstance(each, (nn.Linear, nn.Embedding)):
            nn.init.normal_(each.weight, std=deviation)
        if isinstance(each, nn.Linear) and each.bias is not None:
            nn.init.zeros_(each.bias)
        if isinstance(each, nn.Embedding) and each.padding_idx is not None:
            nn.init.zeros_(each.weight[each.padding_idx])


def _initialise_missing(model: PersimmonPreTrainedModel, missing: list[str]) -> None:
    for name in missing:
        parameter = model.get_parameter(name)
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=model.config.initializer_range)


def _open(path: Path, mmap: bool) -> tuple[Architecture, Mapping[str, StoredTensor]]:
    """The config at ``path``, and its tensors by their names in a model with a head."""
    values = read_config(path) if path.is_dir() else None
    if values is None:
        checkpoint = open_checkpoint(path, mmap=mmap)
        return checkpoint.config, checkpoint.tensors
    if is_native(values):
        checkpoint = open_native(path, values, mmap=mmap)
        return checkpoint.config, checkpoint.tensors
    config = PersimmonConfig.from_contents(values, path / CONFIG_FILE)
    stored = stored_weights(path, mmap=mmap).tensors
    unwrapped = [unwrapped_name(name) for name in stored]
    prefix = "model." if any(name.startswith(_DECODER) for name in unwrapped) else ""
    required = (name.removeprefix(prefix) for name in config.tensor_shapes() if name not in _HEADS)
    return config, {_full_name(name): tensor for name, tensor in unwrap_names(stored, required).items()}


def _full_name(name: str) -> str:
    """The name in a model with a head; the decoder alone has names without the prefix."""
    return f"model.{name}" if name.startswith(_DECODER) else name


def _changed(config: PersimmonConfig, changes: dict[str, Any]) -> PersimmonConfig:
    values = config.to_dict() | {"num_labels": config.num_labels} | changes
    unknown = [name for name in changes if name not in PersimmonConfig.__dataclass_fields__]
    if unknown:
        raise TypeError(f"from_pretrained has no argument {unknown[0]}, nor PersimmonConfig such a field")
    if "num_labels" in changes and "id2label" not in changes and config.num_labels != changes["num_labels"]:
        values["id2label"] = None
    return PersimmonConfig.from_dict(values)


def _wanted(model: PersimmonPreTrainedModel) -> dict[str, tuple[int, ...]]:
    """The names and shapes that a checkpoint must have."""
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    shapes = {_full_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return {name: shape for name, shape in shapes.items() if name not in tied}


def _chosen_dtype(dtype: torch.dtype | str, stored: Mapping[str, StoredTensor]) -> torch.dtype:
    if isinstance(dtype, str) and dtype == "auto":
        return stored["model.embed_tokens.weight"].dtype
    for name, chosen in WEIGHT_DTYPES.items():
        if dtype is chosen or (isinstance(dtype, str) and dtype == name):
            return chosen
    raise ParameterError(f"dtype is {short_repr(dtype)}; expected 'auto', float32, float16 or bfloat16")


def _chosen_device(device: object) -> torch.device:
    try:
        if isinstance(device, (str, torch.device)):
            return torch.device(device)
    except RuntimeError as error:
        raise ParameterError(f"device is {short_repr(device)}; expected a device of torch") from error
    raise ParameterError(f"device is {short_repr(device)}; expected a torch.device or its name")


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu()

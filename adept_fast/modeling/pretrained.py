"""The base class of all models: loading any checkpoint, and saving what transformers loads too."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from adept_fast.arguments import flag, optional_text
from adept_fast.checkpoint import StoredTensor, locate
from adept_fast.checkpoint.base import FLOATS, check_tensors, without_derived
from adept_fast.checkpoint.weight_files import read_as
from adept_fast.config import PersimmonConfig as Architecture
from adept_fast.modeling.base import BaseConfig, BaseModel
from adept_fast.modeling.config import PersimmonConfig, changed, config_of
from adept_fast.modeling.loading_options import LoadingOptions
from adept_fast.modeling.saving import save_model
from adept_fast.modeling.stored import HEADS, full_name, name_of, of_state_dict, open_stored
from adept_fast.system.mapped_files import release_pages

Model = TypeVar("Model", bound="PersimmonPreTrainedModel")


class PersimmonPreTrainedModel(BaseModel):
    """A decoder with or without a head. New weights are random, initialised like those of transformers."""

    config_class = PersimmonConfig
    base_model_prefix = "model"
    head_names: tuple[str, ...] = ()
    # What transformers asks its models about.
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _can_compile_fullgraph = True
    _no_split_modules = ["PersimmonDecoderLayer"]
    _skip_keys_device_placement = ["cache", "past_key_values"]

    def __init__(self, config: Architecture | BaseConfig) -> None:
        super().__init__(config_of(config))

    def returns_dict(self, return_dict: bool | None) -> bool:
        if return_dict is None:
            return_dict = getattr(self.config, "return_dict", True)
        return bool(return_dict)

    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | Path | None,
        *,
        state_dict: Mapping[str, Tensor] | None = None,
        revision: str | None = None,
        config: Architecture | BaseConfig | None = None,
        mmap: bool = True,
        output_loading_info: bool = False,
        **options: Any,
    ) -> Any:
        """Load from a local directory, ``"demo"``, or anything that ``Runtime.load`` takes; in eval mode.

        A repository of the hub needs no tokenizer. If the checkpoint has no weights for the head, they are
        initialised, with a warning.

        Args:
            pretrained_model_name_or_path: None with ``config`` and ``state_dict``.
            state_dict: the weights, instead of the checkpoint's.
            revision: of a hub id: a branch, a tag or a commit; None for ``main``.
            config: replaces the checkpoint's.
            mmap: read the weights memory-mapped, or copied, as ``Runtime.load`` does.
            output_loading_info: return (model, info) with the missing, unexpected and mismatched keys.
            options: those of ``LoadingOptions``, such as ``dtype`` and ``device_map``; and fields of the
                config to change, such as ``num_labels=3``.

        Raises CheckpointError or ConfigError naming the file, the tensor and what was expected, and
        ParameterError for an argument of another type.
        """
        given = None if config is None else copy.deepcopy(config_of(config))
        chosen, changes = LoadingOptions.read(options)
        flag("mmap", mmap)
        if pretrained_model_name_or_path is None and given is not None and state_dict is not None:
            path, stored = Path("state_dict"), of_state_dict(given.to_dict(), state_dict)
        else:
            name = name_of(pretrained_model_name_or_path, chosen.subfolder)
            found = locate(name, optional_text("revision", revision), tokenizer=False, token=chosen.token)
            path, stored = found.path, open_stored(found.path, mmap=mmap)
            if state_dict is not None:
                stored = of_state_dict(stored.config, state_dict)
        values = stored.config if given is None else given.to_dict()
        chosen_config = given if given is not None and not changes else changed(values, changes)
        chosen_config.name_or_path = str(pretrained_model_name_or_path or "")
        if chosen.attn_implementation is not None:
            chosen_config._attn_implementation = chosen.attn_implementation
        with torch.device("meta"):
            model = cls(chosen_config)
        info = _load(model, path, stored.tensors, chosen)
        model.read_generation_config(path)
        return (model.eval(), info) if output_loading_info else model.eval()

    def read_generation_config(self, path: Path) -> None:
        """Take the settings of ``generate`` that a checkpoint has, in a class that generates."""

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Write config.json and the weights, which the class of this name in transformers loads too.

        Files of these names are replaced once all are on disk; other files stay. No tokenizer is written.

        Args:
            options: those of ``save_model``, such as ``max_shard_size`` and ``state_dict``.

        Raises CheckpointError if the directory holds other weights than would be replaced, or the disk is too
        full; ParameterError for an option that is not supported.
        """
        if getattr(self, "_hf_peft_config_loaded", False):
            super().save_pretrained(save_directory, **options)  # type: ignore[misc]  # adapters alone
            return
        save_model(self, save_directory, **options)


def _load(
    model: PersimmonPreTrainedModel, path: Path, stored: Mapping[str, StoredTensor], chosen: LoadingOptions
) -> dict[str, Any]:
    """Read the weights of a model without storage; returns what ``output_loading_info`` asks for."""
    wanted = _wanted(model)
    missing = [name for name in wanted if name not in stored and name in model.head_names]
    mismatched = [
        (name, stored[name].shape, shape)
        for name, shape in wanted.items()
        if chosen.ignore_mismatched_sizes and name in stored and stored[name].shape != shape
    ]
    new = [*missing, *(name for name, _, _ in mismatched)]
    expected = {name: (shape, FLOATS) for name, shape in wanted.items() if name not in new}
    used = {name: each for name, each in stored.items() if name in expected or name not in (*HEADS, *new)}
    check_tensors(path, expected, without_derived(used))
    model.to(dtype=chosen.dtype_of(stored))
    chosen.place(model)
    model.tie_weights()
    parameters = {full_name(name): tensor for name, tensor in model.state_dict().items()}
    _initialise(model, {name: parameters[name] for name in new})
    if new:
        warnings.warn(
            f"{path}: has no {' and no '.join(new)}{' of this shape' if mismatched else ''}; "
            f"these weights are random and need training",
            stacklevel=3,
        )
    with torch.no_grad():
        for name in expected:
            values = read_as(stored[name], model.dtype)
            parameters[name].copy_(values)
            release_pages(values)
    chosen.dispatch(model)
    return {
        "missing_keys": set(missing),
        "unexpected_keys": {name for name in stored if name in HEADS and name not in wanted},
        "mismatched_keys": {(name, tuple(found), tuple(shape)) for name, found, shape in mismatched},
        "error_msgs": [],
    }


def _wanted(model: PersimmonPreTrainedModel) -> dict[str, tuple[int, ...]]:
    """The names and shapes that a checkpoint must have."""
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    shapes = {full_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return {name: shape for name, shape in shapes.items() if name not in tied}


def _initialise(model: PersimmonPreTrainedModel, new: Mapping[str, Tensor]) -> None:
    """Random values, as those of transformers, for parameters that the checkpoint lacks."""
    for name, parameter in new.items():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.dim() == 1:
            nn.init.ones_(parameter)
        else:
            nn.init.normal_(parameter, std=model.config.initializer_range)

"""PersimmonConfig of the modeling classes: transformers' fields, with values that are checked."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from adept_fast.arguments import optional_text
from adept_fast.checkpoint import WEIGHT_DTYPES
from adept_fast.checkpoint.location import locate_config
from adept_fast.config import ConfigError, require_flag, require_integer, require_number
from adept_fast.config import PersimmonConfig as Architecture
from adept_fast.modeling.base import BaseConfig
from adept_fast.modeling.stored import config_values, name_of
from adept_fast.system.short_text import short_repr

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
_MAX_LABELS = 1_000_000  # a head without weights in the checkpoint is allocated with a row for each
_DROPOUTS = ("hidden_dropout", "attention_dropout", "classifier_dropout")
_LABELS = {"num_labels", "id2label", "label2id"}
_NAMES_OF_CODE = {"attn_implementation", "experts_implementation", "auto_map", "per_layer_config"}
_FLAGS = ("use_cache", "output_hidden_states", "output_attentions", "return_dict")


class PersimmonConfig(BaseConfig):
    """transformers' PersimmonConfig, with its fields and defaults, which raises ConfigError for wrong values.

    It is a subclass of transformers' where that is installed. Fields can be set later; the sizes of a model
    are those that its config had when the model was made.
    """

    # Not predictions: transformers' Trainer leaves these fields of an output out.
    keys_to_ignore_at_inference = ["cache", "past_key_values"]

    def __init__(self, **values: Any) -> None:
        if isinstance(values.get("id2label"), list | tuple):
            values["id2label"] = dict(enumerate(values["id2label"]))
        if values.get("id2label") is None and values.get("label2id"):
            values["id2label"] = {at: label for label, at in values["label2id"].items()}
        _check(values)
        if values.get("id2label") is not None and values.get("label2id") is None:
            values["label2id"] = {label: int(at) for at, label in values["id2label"].items()}
        super().__init__(**values)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        subfolder: str = "",
        **changes: Any,
    ) -> Any:
        """The config of any checkpoint that ``PersimmonForCausalLM.from_pretrained`` takes.

        Args:
            revision, token: of a hub id.
            subfolder: a folder below a directory.
            changes: fields to change; ``return_unused_kwargs=True`` returns those that are no fields.

        Raises CheckpointError or ConfigError.
        """
        path = name_of(pretrained_model_name_or_path, subfolder)
        directory = locate_config(path, optional_text("revision", revision), token=token)
        return_unused = changes.pop("return_unused_kwargs", False)
        values = config_values(directory)
        unused = {name: value for name, value in changes.items() if name not in _names(values)}
        if unused and not return_unused:
            raise TypeError(f"PersimmonConfig has no field {next(iter(unused))}")
        config = changed(values, {name: value for name, value in changes.items() if name not in unused})
        return (config, unused) if return_unused else config


def config_of(config: object) -> Any:
    """A config for a model: transformers' or ours as it is, or a runtime's with all other defaults."""
    if isinstance(config, BaseConfig):
        return config
    if isinstance(config, Architecture):
        return PersimmonConfig(**{field.name: getattr(config, field.name) for field in fields(Architecture)})
    raise ConfigError(f"config is {short_repr(config)}; expected a PersimmonConfig")


def architecture_of(config: object) -> Architecture:
    """The sizes of a model of this config. Raises ConfigError for values that no model can have."""
    if isinstance(config, Architecture):
        return config
    return Architecture.from_dict(config_of(config).to_dict())


def changed(values: dict[str, Any], changes: dict[str, Any]) -> Any:
    """The config of a ``config.json``'s values with fields replaced. Raises TypeError for another name."""
    for name in changes:
        if name not in _names(values):
            raise TypeError(f"from_pretrained has no argument {name}, nor PersimmonConfig such a field")
    # Labels are replaced as a whole.
    if not _LABELS.isdisjoint(changes):
        values = {name: value for name, value in values.items() if name not in _LABELS}
    return PersimmonConfig.from_dict({**_harmless(values), **changes})


def _harmless(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a file that may become attributes of a config.

    Others would name code that transformers downloads, or replace methods of the config.
    """
    fields_of_base = set(BaseConfig().to_dict()) | {"id2label", "label2id", "num_labels", "problem_type"}
    return {
        name: value
        for name, value in values.items()
        if (name in fields_of_base or not hasattr(BaseConfig, name))
        and not name.startswith("_")
        and name not in _NAMES_OF_CODE
        and (name not in ("dtype", "torch_dtype") or value in list(WEIGHT_DTYPES))
    }


def _names(values: dict[str, Any]) -> set[str]:
    """The names that a config of these values may have."""
    defaults = {*PersimmonConfig().to_dict(), "num_labels", "classifier_dropout", "id2label", "label2id"}
    return defaults | set(values) | {field.name for field in fields(Architecture)} | {*_FLAGS, "problem_type"}


def _check(values: dict[str, Any]) -> None:
    """Raises ConfigError when a value is out of its range or contradicts another."""
    architecture = Architecture.from_dict({k: v for k, v in values.items() if v is not None or k in _NULL})
    for name in _DROPOUTS:
        if values.get(name) is not None:
            require_number(name, values[name], lambda value: 0 <= value <= 1, "a probability from 0 to 1")
    for name in _FLAGS:
        if values.get(name) is not None:
            require_flag(name, values[name])
    if values.get("initializer_range") is not None:
        deviation = values["initializer_range"]
        require_number(
            "initializer_range", deviation, lambda value: 0 <= value <= sys.float_info.max, "a number from 0"
        )
    if values.get("pad_token_id") is not None:
        require_integer("pad_token_id", values["pad_token_id"], 0, architecture.vocab_size - 1)
    _check_labels(values)


_NULL = ("bos_token_id", "eos_token_id")  # fields of the architecture that may be None


def _check_labels(values: dict[str, Any]) -> None:
    labels, count = values.get("id2label"), values.get("num_labels")
    if labels is not None:
        if not isinstance(labels, dict) or not all(_is_label_id(at) for at in labels):
            raise ConfigError(f"id2label is {short_repr(labels)}; expected an object from ids to names")
        if count is not None and len(labels) != count:
            raise ConfigError(f"num_labels is {count}, id2label has {len(labels)} names; expected as many")
        count = len(labels)
    if count is not None:
        require_integer("num_labels", count, 1, _MAX_LABELS)
    kind = values.get("problem_type")
    if kind not in (None, *PROBLEM_TYPES):
        allowed = ", ".join(PROBLEM_TYPES)
        raise ConfigError(f"problem_type is {short_repr(kind)}; expected None or one of {allowed}")
    if kind == "single_label_classification" and count == 1:
        raise ConfigError(f"problem_type is {kind!r} and num_labels 1; expected at least 2")


def _is_label_id(key: Any) -> bool:
    if isinstance(key, str):
        return key.isascii() and key.isdigit() and len(key) <= 9
    return isinstance(key, int) and not isinstance(key, bool) and 0 <= key < _MAX_LABELS

"""PersimmonConfig with the settings of training and classification."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, fields, replace
from typing import Any

from adept_fast.config import ConfigError, require_flag, require_integer, require_number
from adept_fast.config import PersimmonConfig as Architecture
from adept_fast.system.short_text import short_repr

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
_MAX_LABELS = 1_000_000  # a head without weights in the checkpoint is allocated with a row for each
_ARCHITECTURE = frozenset(field.name for field in fields(Architecture))


@dataclass(frozen=True)
class _Fields(Architecture):
    initializer_range: float = 0.02
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    classifier_dropout: float | None = None
    pad_token_id: int | None = None
    num_labels: int = 2
    id2label: dict[int, str] | None = None
    problem_type: str | None = None
    use_cache: bool = True
    output_hidden_states: bool = False
    output_attentions: bool = False
    return_dict: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hidden_dropout", "attention_dropout", "classifier_dropout"):
            if name != "classifier_dropout" or self.classifier_dropout is not None:
                require_number(
                    name, getattr(self, name), lambda value: 0 <= value <= 1, "a probability from 0 to 1"
                )
        for name in ("use_cache", "output_hidden_states", "output_attentions", "return_dict"):
            require_flag(name, getattr(self, name))
        deviation = self.initializer_range
        require_number(
            "initializer_range", deviation, lambda value: 0 <= value <= sys.float_info.max, "a number from 0"
        )
        if self.pad_token_id is not None:
            require_integer("pad_token_id", self.pad_token_id, 0, self.vocab_size - 1)
        require_integer("num_labels", self.num_labels, 1, _MAX_LABELS)
        if self.id2label is not None and len(self.id2label) != self.num_labels:
            raise ConfigError(
                f"num_labels is {self.num_labels}, id2label has {len(self.id2label)} names; expected as many"
            )
        kind = self.problem_type
        if kind not in (None, *PROBLEM_TYPES):
            allowed = ", ".join(PROBLEM_TYPES)
            raise ConfigError(f"problem_type is {short_repr(kind)}; expected None or one of {allowed}")
        if kind == "single_label_classification" and self.num_labels == 1:
            raise ConfigError(f"problem_type is {kind!r} and num_labels 1; expected at least 2")


class PersimmonConfig(_Fields):
    """``adept_fast.PersimmonConfig`` with the rest of transformers' fields, under its names and defaults.

    Fields that do not describe the architecture can be set later, as in ``model.config.pad_token_id = 0``.

    Raises ConfigError when a value is out of its range or contradicts another.
    """

    # Not predictions: transformers' Trainer leaves these fields of an output out.
    keys_to_ignore_at_inference = ("cache", "past_key_values")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _ARCHITECTURE:
            raise ConfigError(f"{name} is fixed by the architecture; expected a new config")
        if name not in {field.name for field in fields(self)}:
            raise ConfigError(f"{name} is not a field of PersimmonConfig")
        if name == "num_labels" and self.id2label is not None and value != self.num_labels:
            object.__setattr__(self, "id2label", None)
        replace(self, **{name: value})  # raises if the value is not allowed
        object.__setattr__(self, name, value)

    @property
    def labels(self) -> dict[int, str]:
        """The names of the labels, by default ``LABEL_0`` and so on."""
        return self.id2label or {at: f"LABEL_{at}" for at in range(self.num_labels)}

    @property
    def label2id(self) -> dict[str, int]:
        return {label: at for at, label in self.labels.items()}

    @classmethod
    def of(cls, config: Architecture) -> PersimmonConfig:
        """The config itself, or a config of the runtime with the defaults of all other fields."""
        if isinstance(config, cls):
            return config
        if not isinstance(config, Architecture):
            raise ConfigError(f"config is {short_repr(config)}; expected a PersimmonConfig")
        return cls(**{name: getattr(config, name) for name in _ARCHITECTURE})

    @classmethod
    def from_dict(cls, values: Any) -> PersimmonConfig:
        """Build from the contents of a ``config.json``."""
        if isinstance(values, dict):
            labels = values.get("id2label")
            if labels is not None:
                values = values | {"id2label": _labels(labels), "num_labels": len(labels)}
            null = ("initializer_range", "use_cache", "return_dict", "num_labels")
            values = {name: value for name, value in values.items() if value is not None or name not in null}
        config = super().from_dict(values)
        assert isinstance(config, cls)
        return config

    def to_dict(self) -> dict[str, Any]:
        """The contents of a ``config.json`` that transformers reads alike."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        own = {name: value for name, value in own.items() if name not in _ARCHITECTURE}
        own["id2label"] = {str(at): label for at, label in self.labels.items()}
        return dict(sorted((super().to_dict() | own | {"label2id": self.label2id}).items()))


def _labels(labels: Any) -> dict[int, str]:
    """The labels of JSON, whose keys are strings."""
    if not isinstance(labels, dict) or not all(_is_label_id(at) for at in labels):
        raise ConfigError(f"id2label is {short_repr(labels)}; expected an object from ids to names")
    return {int(at): str(label) for at, label in labels.items()}


def _is_label_id(key: Any) -> bool:
    if isinstance(key, str):
        return re.fullmatch("[0-9]{1,9}", key) is not None
    return isinstance(key, int) and not isinstance(key, bool) and 0 <= key < _MAX_LABELS

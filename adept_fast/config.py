"""PersimmonConfig: the shape of a model, as checkpoints store it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from adept_fast.system.json_file import read_json
from adept_fast.system.regular_file import FileError
from adept_fast.system.short_text import short_repr

_MAX_SIZE = 2**31 - 1
_MAX_LAYERS = 4096  # tensor_shapes() lists every layer: a hostile file must not make that list endless


class ConfigError(ValueError):
    """A configuration that is malformed, contradicts itself, or describes another architecture."""


@dataclass(frozen=True)
class PersimmonConfig:
    """The architecture of one member of the Persimmon family.

    Field names and defaults are those of transformers' PersimmonConfig (5.x), so the defaults describe
    Persimmon-8B except for ``rope_theta``: Adept's 8B was trained with 25000, as its checkpoint states.

    Raises ConfigError when a value is out of its range or contradicts another.
    """

    vocab_size: int = 262144
    hidden_size: int = 4096
    intermediate_size: int = 16384
    num_hidden_layers: int = 36
    num_attention_heads: int = 64
    max_position_embeddings: int = 16384
    layer_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    partial_rotary_factor: float = 0.5
    qk_layernorm: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "max_position_embeddings",
        ):
            highest = _MAX_LAYERS if name == "num_hidden_layers" else _MAX_SIZE
            require_integer(name, getattr(self, name), 1, highest)
        for name in ("bos_token_id", "eos_token_id"):
            if getattr(self, name) is not None:
                require_integer(name, getattr(self, name), -1, _MAX_SIZE)
        for name in ("layer_norm_eps", "rope_theta", "partial_rotary_factor"):
            require_number(
                name,
                getattr(self, name),
                lambda value: 0 < value <= sys.float_info.max,
                "a positive finite number",
            )
        for name in ("qk_layernorm", "tie_word_embeddings"):
            require_flag(name, getattr(self, name))
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if self.partial_rotary_factor > 1:
            raise ConfigError(f"partial_rotary_factor is {self.partial_rotary_factor}; expected (0, 1]")
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            raise ConfigError(
                f"partial_rotary_factor {self.partial_rotary_factor} of head_dim {self.head_dim} rotates "
                f"{self.rotary_dim} dimensions; expected an even number of at least 2"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def whole(self) -> PersimmonConfig:
        """The config of the model that this one describes a part of."""
        return self

    @property
    def first_id(self) -> int:
        """The token of the first row of the vocabulary."""
        return 0

    @property
    def attention_width(self) -> int:
        """The dimensions of all heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def dense_padding(self) -> tuple[int, int]:
        """The columns of the attention's output projection before and after those of the heads."""
        return 0, 0

    @property
    def dense_inputs(self) -> int:
        """The columns of the attention's output projection."""
        return self.attention_width + sum(self.dense_padding)

    @property
    def rotary_dim(self) -> int:
        """The number of leading dimensions of each head that are rotated."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name (as in transformers' PersimmonForCausalLM) → shape, of every tensor a checkpoint must hold."""
        hidden, intermediate = self.hidden_size, self.intermediate_size
        head_norms = ("self_attn.q_layernorm", "self_attn.k_layernorm") if self.qk_layernorm else ()
        weights: dict[str, tuple[int, ...]] = {
            "input_layernorm": (hidden,),
            "self_attn.query_key_value": (3 * self.attention_width, hidden),
            **dict.fromkeys(head_norms, (self.head_dim,)),
            "self_attn.dense": (hidden, self.dense_inputs),
            "post_attention_layernorm": (hidden,),
            "mlp.dense_h_to_4h": (intermediate, hidden),
            "mlp.dense_4h_to_h": (hidden, intermediate),
        }
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        for index in range(self.num_hidden_layers):
            for name, shape in weights.items():
                shapes[f"model.layers.{index}.{name}.weight"] = shape
                shapes[f"model.layers.{index}.{name}.bias"] = shape[:1]
        shapes["model.final_layernorm.weight"] = (hidden,)
        shapes["model.final_layernorm.bias"] = (hidden,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, hidden)
        return shapes

    @classmethod
    def from_json(cls, path: Path) -> PersimmonConfig:
        """Read a Hugging Face ``config.json``; ConfigError names the file."""
        try:
            values = read_json(path)
        except FileError as error:
            raise ConfigError(str(error)) from error
        return cls.from_contents(values, path)

    @classmethod
    def from_contents(cls, values: dict[str, Any], path: Path) -> PersimmonConfig:
        """Build from the contents of the ``config.json`` at ``path``, which ConfigError names."""
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, values: Any) -> PersimmonConfig:
        """Build from the contents of a ``config.json``, in either spelling of the rotary settings."""
        if not isinstance(values, dict):
            raise ConfigError(f"the configuration is a {type(values).__name__}; expected a JSON object")
        if values.get("model_type", "persimmon") != "persimmon":
            raise ConfigError(f"model_type is {short_repr(values['model_type'])}; expected 'persimmon'")
        if values.get("hidden_act", "relu2") != "relu2":
            raise ConfigError(f"hidden_act is {short_repr(values['hidden_act'])}; expected 'relu2'")
        known = {field.name for field in fields(cls)}
        chosen = {name: value for name, value in values.items() if name in known}
        # A list of end tokens names alternatives; the first is the one that the model was trained with.
        if isinstance(chosen.get("eos_token_id"), list):
            chosen["eos_token_id"] = chosen["eos_token_id"][0] if chosen["eos_token_id"] else None
        chosen.update(_rotary_settings(values))
        return cls(**chosen)

    def to_dict(self) -> dict[str, Any]:
        """The contents of a ``config.json`` that every transformers release with Persimmon reads alike."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        values.update(
            architectures=["PersimmonForCausalLM"],
            model_type="persimmon",
            hidden_act="relu2",
            attention_dropout=0.0,
            hidden_dropout=0.0,
            pad_token_id=None,
            use_cache=True,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": self.rope_theta,
                "partial_rotary_factor": self.partial_rotary_factor,
            },
        )
        return dict(sorted(values.items()))


@dataclass(frozen=True)
class RankConfig(PersimmonConfig):
    """The part of a model that one of several tensor-parallel ranks has: some heads, neurons and rows of the
    vocabulary, of which the first is that of the token ``first_row``, of the model ``of``.

    ``padding`` are columns before and after those of the rank's heads in its part of the attention's output
    projection: 4-bit weights of a row share scales in groups, which are not cut.
    """

    of: PersimmonConfig = field(default_factory=PersimmonConfig)
    first_row: int = 0
    padding: tuple[int, int] = (0, 0)

    @property
    def whole(self) -> PersimmonConfig:
        return self.of

    @property
    def first_id(self) -> int:
        return self.first_row

    @property
    def dense_padding(self) -> tuple[int, int]:
        return self.padding

    @property
    def head_dim(self) -> int:
        return self.of.head_dim


def _rotary_settings(values: dict[str, Any]) -> dict[str, Any]:
    """rope_theta and partial_rotary_factor; ``rope_parameters`` wins over the older spelling."""
    nested = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(nested, dict):
        raise ConfigError(f"rope_parameters is {short_repr(nested)}; expected a JSON object")
    rope_type = nested.get("rope_type", nested.get("type", "default"))
    if rope_type != "default":
        raise ConfigError(f"rope_parameters has rope_type {short_repr(rope_type)}; expected 'default'")
    return {
        name: source[name]
        for name in ("rope_theta", "partial_rotary_factor")
        for source in (values, nested)
        if source.get(name) is not None
    }


def require_integer(name: str, value: Any, lowest: int, highest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise ConfigError(f"{name} is {short_repr(value)}; expected an integer from {lowest} to {highest}")


def require_number(name: str, value: Any, in_range: Callable[[float], bool], expected: str) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not in_range(value):
        raise ConfigError(f"{name} is {short_repr(value)}; expected {expected}")


def require_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {short_repr(value)}; expected true or false")

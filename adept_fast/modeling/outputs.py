"""What a forward pass returns: fields by name, by key or by place, as transformers' outputs have them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from adept_fast.modeling.cache import KeyValueCache

_OTHER_NAMES = {"past_key_values": "cache"}  # of fields, in older releases of transformers


class ModelOutput(dict[Any, Any]):
    """Fields in order; one that is None is left out, and is None as an attribute.

    The cache can be read as ``past_key_values`` too.
    """

    def __init__(self, **values: Any) -> None:
        super().__init__({name: value for name, value in values.items() if value is not None})

    def __getattr__(self, name: str) -> Any:
        name = _OTHER_NAMES.get(name, name)
        if name not in _names(type(self)):
            raise AttributeError(f"{type(self).__name__} has no field {name}; it has {_names(type(self))}")
        return self.get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        name = _OTHER_NAMES.get(name, name)
        if name not in _names(type(self)):
            raise AttributeError(f"{type(self).__name__} has no field {name}; it has {_names(type(self))}")
        self[name] = value

    def __getitem__(self, key: str | int | slice) -> Any:
        return (
            super().__getitem__(_OTHER_NAMES.get(key, key)) if isinstance(key, str) else self.to_tuple()[key]
        )

    def __contains__(self, key: object) -> bool:
        return super().__contains__(_OTHER_NAMES.get(key, key) if isinstance(key, str) else key)

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(_OTHER_NAMES.get(key, key), default)

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are there, in order."""
        return tuple(self.values())


class BaseModelOutputWithPast(ModelOutput):
    last_hidden_state: Tensor  # [batch, sequence, hidden], after the final LayerNorm
    cache: KeyValueCache | None
    hidden_states: tuple[Tensor, ...] | None  # the embeddings, then after each layer; the last is normalised
    attentions: tuple[Tensor, ...] | None  # of each layer [batch, heads, sequence, past + sequence]


class CausalLMOutputWithPast(ModelOutput):
    loss: Tensor | None
    logits: Tensor  # [batch, kept, vocab]
    cache: KeyValueCache | None
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class SequenceClassifierOutputWithPast(ModelOutput):
    loss: Tensor | None
    logits: Tensor  # [batch, labels]
    cache: KeyValueCache | None
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class TokenClassifierOutput(ModelOutput):
    loss: Tensor | None
    logits: Tensor  # [batch, sequence, labels]
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


def _names(output: type[ModelOutput]) -> tuple[str, ...]:
    return tuple(output.__annotations__)

"""Outputs of a forward pass: fields by name, key or index, like those of transformers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import torch.utils._pytree as pytree
from torch import Tensor

from adept_fast.modeling.cache import Cache

_OTHER_NAMES = {"past_key_values": "cache"}  # of fields, in older releases of transformers

WithLogits = TypeVar("WithLogits", bound="OutputWithLogits")


class ModelOutput(dict[Any, Any]):
    """Fields in order. A field that is None has no key; as an attribute it is None.

    The cache can be read as ``past_key_values`` too.
    """

    names: ClassVar[tuple[str, ...]] = ()  # of all fields

    def __init__(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **fields: Any) -> None:
        given = {**dict(values), **fields}
        super().__init__({name: value for name, value in given.items() if value is not None})

    def __init_subclass__(cls) -> None:
        cls.names += tuple(vars(cls).get("__annotations__", ()))
        # torch.export and data parallelism take outputs apart and put them together again.
        pytree.register_pytree_node(
            cls,
            lambda output: (list(output.values()), list(output)),
            lambda values, names: cls(zip(names, values, strict=True)),
            serialized_type_name=f"{cls.__module__}.{cls.__name__}",
        )

    def __getattr__(self, name: str) -> Any:
        return self.get(_field(type(self), name))

    def __setattr__(self, name: str, value: Any) -> None:
        self[_field(type(self), name)] = value

    def __getitem__(self, key: str | int | slice) -> Any:
        return (
            super().__getitem__(_OTHER_NAMES.get(key, key)) if isinstance(key, str) else self.to_tuple()[key]
        )

    def __contains__(self, key: object) -> bool:
        return super().__contains__(_OTHER_NAMES.get(key, key) if isinstance(key, str) else key)

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(_OTHER_NAMES.get(key, key), default)

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in order."""
        return tuple(self.values())


class BaseModelOutputWithPast(ModelOutput):
    last_hidden_state: Tensor  # [batch, sequence, hidden], after the final LayerNorm
    cache: Cache | None
    hidden_states: tuple[Tensor, ...] | None  # the embeddings, then after each layer; the last is normalised
    attentions: tuple[Tensor, ...] | None  # of each layer [batch, heads, sequence, past + sequence]


class OutputWithLogits(ModelOutput):
    loss: Tensor | None
    logits: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None

    @classmethod
    def of(
        cls: type[WithLogits], decoded: BaseModelOutputWithPast, loss: Tensor | None, logits: Tensor
    ) -> WithLogits:
        """The output of a head on the decoder's, with the fields of the decoder that this class has."""
        shared = {name: value for name, value in decoded.items() if name in cls.names}
        return cls(loss=loss, logits=logits, **shared)


class CausalLMOutputWithPast(OutputWithLogits):  # logits [batch, kept, vocab]
    cache: Cache | None


class SequenceClassifierOutputWithPast(OutputWithLogits):  # logits [batch, labels]
    cache: Cache | None


class TokenClassifierOutput(OutputWithLogits):  # logits [batch, sequence, labels]
    pass


def _field(output: type[ModelOutput], name: str) -> str:
    """The key of an attribute. Raises AttributeError if the output has no such field."""
    name = _OTHER_NAMES.get(name, name)
    if name not in output.names:
        allowed = ", ".join(output.names)
        raise AttributeError(f"{output.__name__} has no field {name}; expected one of {allowed}")
    return name

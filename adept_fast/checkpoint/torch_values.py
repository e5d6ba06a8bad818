"""Substitutes for torch's names in pickles: they build unchecked storages and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from adept_fast.checkpoint.pickle_machine import Functions
from adept_fast.checkpoint.pickle_values import Global, PickledObject, PickledStorage, PickledTensor

_STORAGES: dict[str, torch.dtype | None] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": None,
    "TypedStorage": None,
}
_MAX_DIMENSIONS = 8  # torch allows more, no model has them, and each call of a pickle looks at all
_MAX_SIZE = 2**63 - 1
_PLAIN_CLASSES = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.Parameter")


class StorageType:
    """A class of storages; its elements have ``dtype``, None if they are plain bytes."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        self.dtype = dtype

    def __repr__(self) -> str:
        return f"the class of storages of {self.dtype or 'bytes'}"


def _constants() -> dict[str, object]:
    found: dict[str, object] = {
        f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)
    }
    for name, dtype in _STORAGES.items():
        found |= dict.fromkeys(
            (f"torch.{name}", f"torch.cuda.{name}", f"torch.storage.{name}"), StorageType(dtype)
        )
    return found


def storage_of(identity: object) -> PickledStorage | None:
    """The storage that a persistent id of torch.save refers to, None for any other id."""
    if not isinstance(identity, tuple) or len(identity) != 5:
        return None
    kind, storage_type, key, _location, elements = identity
    if kind != "storage" or not isinstance(storage_type, StorageType) or not isinstance(key, str):
        return None
    if not _is_size(elements):
        return None
    return PickledStorage(storage_type.dtype, key, elements)


def _tensor(arguments: tuple[Any, ...]) -> PickledTensor | None:
    """``_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, metadata)``, and before."""
    if len(arguments) < 4 or not isinstance(arguments[0], PickledStorage):
        return None
    storage, metadata = arguments[0], arguments[6] if len(arguments) > 6 else None
    return _view(storage, storage.dtype, arguments[1:4], metadata)


def _tensor_of_bytes(arguments: tuple[Any, ...]) -> PickledTensor | None:
    """``_rebuild_tensor_v3``: the same of an untyped storage, with a dtype after the hooks."""
    if len(arguments) < 7 or not isinstance(arguments[0], PickledStorage):
        return None
    metadata = arguments[7] if len(arguments) > 7 else None
    return _view(arguments[0], arguments[6], arguments[1:4], metadata)


def _view(
    storage: PickledStorage, dtype: object, geometry: tuple[Any, ...], metadata: object
) -> PickledTensor | None:
    offset, shape, stride = geometry
    if not isinstance(dtype, torch.dtype):
        return None
    if not isinstance(shape, tuple) or not isinstance(stride, tuple) or len(shape) != len(stride):
        return None
    if len(shape) > _MAX_DIMENSIONS or not all(map(_is_size, (offset, *shape, *stride))):
        return None
    # torch writes none but for a lazy view of a tensor's conjugate or negative.
    flaw = "has metadata, as a lazy view does" if metadata else None
    return PickledTensor(storage, dtype, offset, shape, stride, flaw)


def _parameter(arguments: tuple[Any, ...]) -> PickledTensor | None:
    """``_rebuild_parameter(data, requires_grad, hooks)``, with or without a state: the data."""
    return arguments[0] if arguments and isinstance(arguments[0], PickledTensor) else None


def _tensor_with_attributes(arguments: tuple[Any, ...]) -> object:
    """``_rebuild_from_type_v2(function, class, arguments, state)``, of a tensor that was given attributes."""
    if len(arguments) < 3 or not all(isinstance(each, Global) for each in arguments[:2]):
        return None
    maker, kind, given = arguments[:3]
    known = FUNCTIONS.get(f"{maker.module}.{maker.name}")
    if known is None or known is _tensor_with_attributes or not isinstance(given, tuple):
        return None
    return known(given) if f"{kind.module}.{kind.name}" in _PLAIN_CLASSES else PickledObject(kind)


def _no_object(_arguments: tuple[Any, ...]) -> None:
    """A class that is known as an argument of another function; a call of it builds nothing."""


def _size(arguments: tuple[Any, ...]) -> object:
    """``torch.Size``: the tuple that it is."""
    return arguments[0] if arguments and isinstance(arguments[0], tuple) else None


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_SIZE


CONSTANTS: Mapping[str, object] = _constants()
FUNCTIONS: Functions = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_bytes,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _tensor_with_attributes,
    "torch.Size": _size,
    **dict.fromkeys(_PLAIN_CLASSES, _no_object),
}

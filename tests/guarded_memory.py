"""Arguments between guards: memory that must not change, before and behind each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BYTES = 64  # of a guard
PATTERN = 0xA5


class Guarded:
    """Arguments of an operator, those that are written moved between guards.

    ``arguments`` are to be handed over. What shares memory with others, has gaps or no memory stays.
    """

    def __init__(self, arguments: dict[str, Any], written: Sequence[str]) -> None:
        self.arguments = dict(arguments)
        self._guards: list[tuple[str, Tensor]] = []
        for name in written:
            value = arguments.get(name)
            if isinstance(value, Tensor) and self._is_alone(name, value):
                self.arguments[name] = self._moved(name, value)

    def copies(self) -> dict[str, Any]:
        """Of all arguments, each in memory of its own."""
        return {name: _copy(value) for name, value in self.arguments.items()}

    def changed_since(self, before: dict[str, Any], but: Sequence[str]) -> str:
        """What is not as it was, by name; empty where all is."""
        for name, guard in self._guards:
            if not (guard == PATTERN).all():
                return f"memory beside {name}"
        for name, value in self.arguments.items():
            if name not in but and not _same(value, before[name]):
                return name
        return ""

    def _is_alone(self, name: str, tensor: Tensor) -> bool:
        plain = tensor.layout == torch.strided and not tensor.is_meta and tensor.is_contiguous()
        if not plain or tensor.data_ptr() % max(tensor.itemsize, 1):
            return False
        storage = tensor.untyped_storage().data_ptr()
        return all(
            other.layout != torch.strided or other.is_meta or other.untyped_storage().data_ptr() != storage
            for key, value in self.arguments.items()
            if key != name
            for other in (value if isinstance(value, list) else [value])
            if isinstance(other, Tensor)
        )

    def _moved(self, name: str, tensor: Tensor) -> Tensor:
        memory = torch.full((2 * BYTES + tensor.nbytes,), PATTERN, dtype=torch.uint8)
        self._guards += [(name, memory[:BYTES]), (name, memory[BYTES + tensor.nbytes :])]
        inside = memory[BYTES : BYTES + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        return inside.copy_(tensor)


def bytes_of(tensor: Tensor) -> Tensor:
    """A copy of its elements: uint8 [nbytes]."""
    return tensor.flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8)


def _copy(value: Any) -> Any:
    if isinstance(value, list):
        return [_copy(part) for part in value]
    return value.clone() if isinstance(value, Tensor) else value


def _same(value: Any, other: Any) -> bool:
    if isinstance(value, list):
        return all(map(_same, value, other))
    if not isinstance(value, Tensor) or value.is_meta or value.layout != torch.strided or not value.numel():
        return True
    both = [bytes_of(tensor) for tensor in (value, other)]
    if value.dtype == torch.bool:  # a copy need not keep which bits of it are set
        both = [tensor != 0 for tensor in both]
    return torch.equal(*both)

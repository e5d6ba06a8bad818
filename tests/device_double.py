"""A double of a GPU's memory: the emulator's tensors on ``DEVICE``, which do not mix with the host's.

The emulator computes on ordinary tensors of the CPU. So a test that gives a kernel a tensor of the host, or
compares one with the device's, would pass here and fail on a GPU. While ``double()`` lasts, tensors that are
made on or moved to ``DEVICE`` are ``OnDevice``: torch's functions refuse what they refuse on a GPU, moves are
copies, and operators take the device's tensors alone, but for those that may be pinned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

DEVICE = torch.device("cpu", 0)  # for torch the CPU, but not equal to it
MAY_BE_PINNED = ("table", "token_ring")  # arguments of operators that may be in the host's memory
MIXED = "Expected all tensors to be on the same device, but found one of the host and one of the device"
# What moves data between host and device, or looks at one tensor alone.
MOVES = ("cpu", "to", "copy_", "__getitem__", "__setitem__", "__get__")


class OnDevice(Tensor):
    """A tensor that a GPU would have in its memory."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.__name__
        if name in ("numpy", "__array__", "pin_memory"):
            raise TypeError(f"can't call {name} of a tensor on the device; copy it to the host first")
        if name == "__get__" and getattr(func, "__self__", None) is Tensor.device:
            return DEVICE
        if name == "to" and _target(args, kwargs) == DEVICE:  # it is there: for torch, the CPU
            args = (args[0], *(_on_cpu(value) for value in args[1:]))
            kwargs = {key: _on_cpu(value) for key, value in kwargs.items()}
        elif name == "cpu" or (name == "to" and _target(args, kwargs) is not None):
            moved = super().__torch_function__(func, types, args, kwargs)
            return _host(moved.clone())
        if name in ("__getitem__", "__setitem__"):
            _check_index(*args)
        elif name not in MOVES:
            _check_together(args, kwargs)
        return super().__torch_function__(func, types, args, kwargs)


class _Mode(TorchFunctionMode):
    """Makes tensors of the device of what is asked for there."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        moves = getattr(func, "__name__", "") == "to" and _target(args, kwargs) == DEVICE
        if not moves and kwargs.get("device") != DEVICE:
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor) or isinstance(result, OnDevice):
            return result
        return on_device(result.clone() if moves else result)


def on_device(tensor: Tensor) -> Tensor:
    """The same memory, as the device's."""
    return tensor.as_subclass(OnDevice)


def _on_cpu(value: Any) -> Any:
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _host(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Tensor)


def _target(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device | None:
    """Where ``Tensor.to`` moves; None where it only changes the dtype."""
    for value in (kwargs.get("device"), *args[1:2]):
        if isinstance(value, Tensor):
            return value.device
        if isinstance(value, (str, torch.device)):
            return torch.device(value)
    return None


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _check_together(*values: Any) -> None:
    """Beside tensors of the device, the host's may be numbers only."""
    tensors = list(_tensors(values))
    if any(isinstance(tensor, OnDevice) for tensor in tensors) and any(
        not isinstance(tensor, OnDevice) and tensor.dim() > 0 for tensor in tensors
    ):
        raise RuntimeError(MIXED)


def _check_index(tensor: Tensor, index: Any, value: Any = None) -> None:
    """A tensor of the device takes indices of both, one of the host its own; a slice takes values of both."""
    indices = list(_tensors(index))
    if not isinstance(tensor, OnDevice) and any(isinstance(one, OnDevice) for one in indices):
        raise RuntimeError("indices should be on the device of the indexed tensor, which is the host")
    if indices:
        _check_together(tensor, value)


class _Operators:
    """The emulator's, for tensors of the device."""

    def __init__(self, operators: Any) -> None:
        self._operators = operators

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operator = getattr(self._operators, name)
        names = [argument.name for argument in operator.default._schema.arguments]

        def call(*args: Any, **kwargs: Any) -> Any:
            for argument, value in [*zip(names, args, strict=False), *kwargs.items()]:
                on_host = [one for one in _tensors(value) if not isinstance(one, OnDevice)]
                if on_host and argument not in MAY_BE_PINNED:
                    raise RuntimeError(f"{name}: {argument} is in the host's memory; expected the device's")
            with torch._C.DisableTorchFunction():
                found = operator(*_unwrapped(args), **_unwrapped(kwargs))
            if isinstance(found, tuple):
                return tuple(map(on_device, found))
            return on_device(found) if isinstance(found, Tensor) else found

        return call


def _unwrapped(value: Any) -> Any:
    if isinstance(value, OnDevice):
        return _host(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_unwrapped(part) for part in value)
    return {key: _unwrapped(part) for key, part in value.items()} if isinstance(value, dict) else value


_lasting = 0


def guarded(operators: Any) -> Any:
    """Operators that take tensors of the device alone, while a double lasts."""
    return _Operators(operators) if _lasting else operators


@contextmanager
def double() -> Iterator[None]:
    """While it lasts, ``DEVICE`` has a memory of its own."""
    global _lasting  # noqa: PLW0603
    _lasting += 1
    try:
        with _Mode():
            yield
    finally:
        _lasting -= 1

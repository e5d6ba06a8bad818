"""Calls into the extension, whose operators torch dispatches by device: to C++ on a CPU, to CUDA on a GPU."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from adept_fast.quantization.matrix import parts_of

operators: Any = torch.ops.adept_fast


def matrix_positions(definition: Callable[..., Any]) -> list[int]:
    """Which parameters of an operator are matrices."""
    parameters = inspect.signature(definition).parameters.values()
    return [index for index, parameter in enumerate(parameters) if parameter.annotation == "Matrix"]


def kernel(definition: Callable[..., Any]) -> Callable[..., Any]:
    """A function that takes the definition's arguments, all by position, and calls the operator of its name.

    ``lm_head`` also passes the number of rows, which the padding of a packed matrix hides.
    """
    call, matrices = getattr(operators, definition.__name__), matrix_positions(definition)
    if not matrices:
        return call  # type: ignore[no-any-return]
    first, last = matrices[0], matrices[-1]
    after, then = first + 1, last + 1
    if definition.__name__ == "lm_head":
        return lambda *args: call(*args[:first], *parts_of(args[first]), args[first].shape[0])
    if first == last:
        return lambda *args: call(*args[:first], *parts_of(args[first]), *args[after:])
    return lambda *args: call(
        *args[:first], *parts_of(args[first]), *args[after:last], *parts_of(args[last]), *args[then:]
    )

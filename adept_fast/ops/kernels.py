"""Calls into the extension, whose operators torch dispatches by device: to C++ on a CPU, to CUDA on a GPU."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adept_fast.ops import reference
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


def prefill_attention(q: Tensor, cache_layer: Tensor, slot: int, start: int, scale: float) -> Tensor:
    """Attention of consecutive queries by the kernel of single ones, so that both give the same bits."""
    end = start + len(q)
    reference.check_start(start, len(q), cache_layer.shape[3])
    slots = torch.full((len(q),), slot, dtype=torch.int64, device=q.device)  # [tokens]
    lengths = torch.arange(start + 1, end + 1, dtype=torch.int64, device=q.device)  # [tokens]
    attended: Tensor = operators.decode_attention(q, cache_layer, slots, lengths, end, scale)
    return attended

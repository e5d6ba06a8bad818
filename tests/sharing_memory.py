"""Arguments of an operator that share memory, or lie side by side."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# What each operator writes to, in the order of its schema.
WRITTEN: dict[str, tuple[str, ...]] = {
    "mlp": ("counts",),
    "rotary_append": ("cache_layer",),
    "decode_step": ("cache", "counts"),
    "decode_layers": ("cache", "counts", "counters"),
    "sample": ("seen", "counts"),
    "update_decode_state": ("ids", "slots", "positions", "counts", "token_ring"),
}


def pairs(operator: str, arguments: dict[str, Any]) -> list[tuple[str, str]]:
    """Each argument that is written, with each other one that is a tensor or a list of some."""
    others = [name for name, value in arguments.items() if isinstance(value, (Tensor, list))]
    return [(one, other) for one in WRITTEN[operator] for other in others if other != one]


def placed(arguments: dict[str, Any], one: str, other: str, bytes_shared: int) -> dict[str, Any]:
    """The arguments, with the end of ``one`` in the same memory as the beginning of ``other``.

    Of a list it is a tensor in its middle. ``bytes_shared``: 0 puts them side by side.
    """
    value = arguments[other]
    index = len(value) // 2 if isinstance(value, list) else 0
    second = value[index] if isinstance(value, list) else value
    first, other_at = _side_by_side(arguments[one], second, bytes_shared)
    moved = [*value[:index], other_at, *value[index + 1 :]] if isinstance(value, list) else other_at
    return {**arguments, one: first, other: moved}


def _side_by_side(first: Tensor, second: Tensor, bytes_shared: int) -> tuple[Tensor, Tensor]:
    begin = first.nbytes - bytes_shared
    begin += -begin % max(second.itemsize, 16 if bytes_shared == 0 else 1)
    memory = torch.zeros(begin + second.nbytes + 16, dtype=torch.uint8)

    def view(of: Tensor, at: int) -> Tensor:
        return memory[at : at + of.nbytes].view(of.dtype).view(of.shape)

    first_at, second_at = view(first, 0), view(second, begin)
    second_at.copy_(second)
    first_at.copy_(first)
    return first_at, second_at

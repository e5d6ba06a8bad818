"""States of decode steps to advance, and the plain loop that says what becomes of them."""

from __future__ import annotations

import torch
from torch import Tensor

SLOTS, VOCAB = 4, 7
ROWS = (1, 2, 3, 5, 8, 16)

State = dict[str, Tensor]  # the arguments of the operator, by name


def random_state(rows: int, *, depth: int, seed: int) -> State:
    """Some rows absent, ids in and out of the vocabulary, limits near the positions, counts past 32 bits."""
    generator = torch.Generator().manual_seed(seed)

    def random(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    counts = random(0, 50, rows) + torch.tensor([0, 2**31 - 25, 2**32 - 25, 2**40])[random(0, 4, rows)]
    return {
        "chosen": random(-2, VOCAB + 2, rows),
        "ids": random(0, VOCAB, rows),
        "slots": random(-1, SLOTS, rows),
        "positions": random(0, 20, rows),
        "limits": random(0, 40, rows),
        "ends": torch.rand(SLOTS, VOCAB, generator=generator) < 0.2,
        "counts": counts,
        "token_ring": random(-5, 5, rows, depth),
    }


def extreme_state(rows: int, *, depth: int, seed: int) -> State:
    """Every integer may be anything, and is often the first or last of its kind."""
    state = random_state(rows, depth=depth, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor([-(2**63), -(2**63) + 1, -(2**32), -1, 0, 1, 2**31, 2**32, 2**63 - 2, 2**63 - 1])
    for name in ("chosen", "ids", "slots", "positions", "limits", "counts"):
        drawn = values[torch.randint(0, len(values), (rows,), generator=generator)]
        state[name] = torch.where(torch.rand(rows, generator=generator) < 0.7, drawn, state[name])
    return state


def wrapped(value: int) -> int:
    """As 64 bits hold it."""
    return (value + 2**63) % 2**64 - 2**63


def advanced(state: State) -> State:
    """Row by row, in Python's integers."""
    after = {name: tensor.tolist() for name, tensor in state.items()}
    for row in range(len(after["ids"])):
        after["counts"][row] = wrapped(after["counts"][row] + 1)
        slot, told = after["slots"][row], -2
        if 0 <= slot < SLOTS:
            told = after["chosen"][row]
            after["ids"][row] = max(told, 0)
            after["positions"][row] = wrapped(after["positions"][row] + 1)
            is_last = after["positions"][row] >= after["limits"][row]
            if is_last or not 0 <= told < VOCAB or after["ends"][slot][told]:
                after["slots"][row] = -1
        count = after["counts"][row]
        ring = after["token_ring"][row]
        ring[count % len(ring)] = wrapped((count % 2**32) * 2**32 + told % 2**32)
    return {name: torch.tensor(values).view(state[name].shape) for name, values in after.items()}


def read(word: int) -> tuple[int, int]:
    """The count's lower 32 bits and the id, as a reader of the ring takes them apart."""
    low = word % 2**32
    return word // 2**32 % 2**32, low - 2**32 if low >= 2**31 else low

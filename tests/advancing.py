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
        "ring": random(-5, 5, rows, depth),
    }


def advanced(state: State) -> State:
    """Row by row, in Python's integers."""
    after = {name: tensor.tolist() for name, tensor in state.items()}
    for row in range(len(after["ids"])):
        after["counts"][row] += 1
        slot, told = after["slots"][row], -2
        if slot >= 0:
            told = after["chosen"][row]
            after["ids"][row] = max(told, 0)
            after["positions"][row] += 1
            is_last = after["positions"][row] >= after["limits"][row]
            if is_last or not 0 <= told < VOCAB or after["ends"][slot][told]:
                after["slots"][row] = -1
        count = after["counts"][row]
        word = (count % 2**32) * 2**32 + told % 2**32
        ring = after["ring"][row]
        ring[count % len(ring)] = word - 2**64 if word >= 2**63 else word
    return {name: torch.tensor(values).view(state[name].shape) for name, values in after.items()}


def read(word: int) -> tuple[int, int]:
    """The count's lower 32 bits and the id, as a reader of the ring takes them apart."""
    low = word % 2**32
    return word // 2**32 % 2**32, low - 2**32 if low >= 2**31 else low

"""DecodeState: the inputs of the next decode step, in tensors on the device that keep their addresses.

Each step updates the state itself, so steps can follow each other without the host. The host reads the chosen
tokens from a ring buffer in its own memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adept_fast.ops.transfer import to_device

ENDLESS = 2**62  # a limit that no position reaches
RING_DEPTH = 16  # steps whose tokens the ring holds

_WRAP = 2**32  # a word of the ring holds the lower half of its step's number
_POLLS_BETWEEN_CHECKS = 10_000  # of the ring, before the host checks whether the device has failed


@dataclass(frozen=True)
class Rows:
    """Views of the first rows of a state: int64 [rows], except ``ends`` and ``token_ring``."""

    ids: Tensor  # the input tokens of the next step
    slots: Tensor  # of the cache; -1 for a row whose sequence has ended, or that has none
    positions: Tensor  # of the input tokens
    limits: Tensor  # the position of a sequence's last token
    ends: Tensor  # bool [slot_count, vocab], the tokens that end a slot's text
    counts: Tensor  # steps so far
    token_ring: Tensor  # int64 [rows, RING_DEPTH]


@dataclass(frozen=True)
class RowInput:
    """The input of one row of a step: a token, its slot and position, and the position of the last token."""

    token_id: int
    slot: int
    position: int
    limit: int = ENDLESS


class DecodeState:
    """The state of up to ``max_rows`` rows. A sequence has one row, and one more for each drafted token.

    On a GPU the ring is pinned memory of the host, which the device writes while it runs. One store writes a
    word with both the token and the number of its step, so a host that finds the number has the token.
    """

    def __init__(self, max_rows: int, slot_count: int, vocab_size: int, device: torch.device) -> None:
        self.max_rows = max_rows
        self._device = device
        # In the order of Rows: ids, slots, positions, limits.
        self._inputs = torch.zeros(4, max_rows, dtype=torch.int64, device=device)
        self._inputs[1] = -1
        self._ends = torch.zeros(slot_count, vocab_size, dtype=torch.bool, device=device)
        self._counts = torch.zeros(max_rows, dtype=torch.int64, device=device)
        on_gpu = device.type == "cuda"
        self._ring = torch.zeros(max_rows, RING_DEPTH, dtype=torch.int64, pin_memory=on_gpu, device="cpu")
        self._words = self._ring.numpy()
        self._steps = [0] * max_rows  # launched, for each row
        self._rows: dict[int, Rows] = {}

    def rows(self, count: int) -> Rows:
        """The first ``count`` rows: always the same tensors."""
        if count not in self._rows:
            ids, slots, positions, limits = (inputs[:count] for inputs in self._inputs)
            self._rows[count] = Rows(
                ids, slots, positions, limits, self._ends, self._counts[:count], self._ring[:count]
            )
        return self._rows[count]

    def end_at(self, slot: int, token_ids: Iterable[int]) -> None:
        """Set the tokens that end the text of a slot."""
        known = [token_id for token_id in token_ids if token_id < self._ends.shape[1]]
        self._ends[slot].fill_(False).index_fill_(0, to_device([known], self._device)[0], True)

    def place(self, inputs: Sequence[RowInput]) -> None:
        """Set the first rows, and leave the others without a sequence. No step may be in flight."""
        padding = [0] * (self.max_rows - len(inputs))
        rows = [
            [row.token_id for row in inputs] + padding,
            [row.slot for row in inputs] + [-1] * len(padding),
            [row.position for row in inputs] + padding,
            [row.limit for row in inputs] + padding,
        ]
        self._inputs.copy_(to_device(rows, self._device))

    def count_step(self, rows: int) -> list[int]:
        """Record that a step over the first rows was launched; returns its number for each row."""
        for row in range(rows):
            self._steps[row] += 1
        return self._steps[:rows]

    def resume_count(self) -> None:
        """Continue from the device's count of steps, after an interruption between launch and count.

        Waits for the steps in flight.
        """
        self._steps = self._counts.tolist()

    def read(self, row: int, step: int) -> int:
        """The token that a step chose for a row: an id, ``ops.INVALID`` or ``ops.ABSENT``.

        Waits for the step. Raises the device's error, or RuntimeError if the step wrote nothing.
        """
        word = int(self._words[row, step % RING_DEPTH])
        polls = 0
        while word // _WRAP % _WRAP != step % _WRAP:
            polls += 1
            if polls % _POLLS_BETWEEN_CHECKS == 0:
                self._check_device(row, step)
            time.sleep(0)
            word = int(self._words[row, step % RING_DEPTH])
        low = word % _WRAP
        return low - _WRAP if low >= _WRAP // 2 else low

    def _check_device(self, row: int, step: int) -> None:
        """Raise if the device has no work left and the word of the step is missing."""
        running = self._device.type == "cuda" and not torch.cuda.current_stream(self._device).query()
        word = int(self._words[row, step % RING_DEPTH])
        if not running and word // _WRAP % _WRAP != step % _WRAP:
            raise RuntimeError(f"step {step} of row {row} was launched, and left nothing in the ring")

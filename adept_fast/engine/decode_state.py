"""DecodeState: what decode steps go on from, in tensors on the device that keep their addresses.

A step moves it on by itself, so steps can follow each other without the host; what they chose, the host reads
from a ring that lies in its own memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ENDLESS = 2**62  # a limit that no position reaches
RING_DEPTH = 16  # steps whose choices the ring holds

_WRAP = 2**32  # a word of the ring holds the lower half of its step's number
_POLLS_BETWEEN_LOOKS = 10_000  # for a step's end, before it is asked whether the device has failed


@dataclass(frozen=True)
class Rows:
    """The first rows of a state, as views: int64 [rows], but for ``ends`` and ``token_ring``."""

    ids: Tensor  # what the next step is fed
    slots: Tensor  # of the cache; -1 where there is no sequence, or it has ended
    positions: Tensor  # where ids stand
    limits: Tensor  # the position of a sequence's last token
    ends: Tensor  # bool [slot_count, vocab], the tokens that end a slot's text
    counts: Tensor  # steps so far
    token_ring: Tensor  # int64 [rows, RING_DEPTH]


@dataclass(frozen=True)
class Place:
    """What a row is to go on from."""

    token_id: int
    slot: int
    position: int
    limit: int = ENDLESS


class DecodeState:
    """The state of up to ``max_rows`` rows; a sequence has one, or with guesses several.

    On a GPU the ring is pinned memory of the host, into which the device writes while it runs. A word of it
    holds an id and the number of the step that chose it, in one store: once the number is there, the id is.
    """

    def __init__(self, max_rows: int, slot_count: int, vocab_size: int, device: torch.device) -> None:
        self.max_rows = max_rows
        self._device = device
        self._held = torch.zeros(4, max_rows, dtype=torch.int64, device=device)  # as Rows has them, in order
        self._held[1] = -1
        self._ends = torch.zeros(slot_count, vocab_size, dtype=torch.bool, device=device)
        self._counts = torch.zeros(max_rows, dtype=torch.int64, device=device)
        on_a_gpu = device.type == "cuda"
        self._token_ring = torch.zeros(
            max_rows, RING_DEPTH, dtype=torch.int64, pin_memory=on_a_gpu, device="cpu"
        )
        self._words = self._token_ring.numpy()
        self._steps = [0] * max_rows  # of each row, that were launched
        self._rows: dict[int, Rows] = {}

    def rows(self, count: int) -> Rows:
        """The first ``count`` rows: always the same tensors."""
        if count not in self._rows:
            ids, slots, positions, limits = (held[:count] for held in self._held)
            self._rows[count] = Rows(
                ids, slots, positions, limits, self._ends, self._counts[:count], self._token_ring[:count]
            )
        return self._rows[count]

    def end_at(self, slot: int, token_ids: Iterable[int]) -> None:
        """Have the text of a slot end at these tokens."""
        self._ends[slot] = False
        self._ends[slot, [i for i in token_ids if i < self._ends.shape[1]]] = True

    def place(self, places: Sequence[Place]) -> None:
        """Set the first rows, and leave the others without a sequence. No step may be under way."""
        rest = [0] * (self.max_rows - len(places))
        held = torch.tensor(
            [
                [place.token_id for place in places] + rest,
                [place.slot for place in places] + [-1] * len(rest),
                [place.position for place in places] + rest,
                [place.limit for place in places] + rest,
            ],
            dtype=torch.int64,
            device="cpu",
        )
        self._held.copy_(held)

    def count_step(self, rows: int) -> list[int]:
        """Note that a step over the first rows was launched; returns its number for each of them."""
        for row in range(rows):
            self._steps[row] += 1
        return self._steps[:rows]

    def resume_count(self) -> None:
        """Count on from the steps that the device has taken, after a run that was cut off before it counted.

        Waits for the steps that are under way.
        """
        self._steps = self._counts.tolist()

    def read(self, row: int, step: int) -> int:
        """What a step chose for a row: an id, -1 where its logits were no distribution, or ``ops.ABSENT``.

        Waits for the step. Raises what the device failed with, or RuntimeError where the step never came.
        """
        word = int(self._words[row, step % RING_DEPTH])
        polls = 0
        while word // _WRAP % _WRAP != step % _WRAP:
            polls += 1
            if polls % _POLLS_BETWEEN_LOOKS == 0:
                self._check_device(row, step)
            time.sleep(0)
            word = int(self._words[row, step % RING_DEPTH])
        low = word % _WRAP
        return low - _WRAP if low >= _WRAP // 2 else low

    def _check_device(self, row: int, step: int) -> None:
        """Raises where the device is done with everything, and the word of the step is not there."""
        running = self._device.type == "cuda" and not torch.cuda.current_stream(self._device).query()
        word = int(self._words[row, step % RING_DEPTH])
        if not running and word // _WRAP % _WRAP != step % _WRAP:
            raise RuntimeError(f"step {step} of row {row} was launched, and left nothing in the ring")

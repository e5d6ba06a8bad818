"""Scheduler: decides which sequences run in the next step, and in which slots of the cache."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from adept_fast.engine.decode_state import ENDLESS, RowInput
from adept_fast.engine.sequence import Sequence
from adept_fast.model import PREFILL_CHUNK, Segment, next_chunk
from adept_fast.sampling import MAX_DRAFTS


class Scheduled(Protocol):
    """A sequence as the scheduler sees it, whether it generates or is scored."""

    slot: int
    is_cancelled: bool
    thread: int  # that submitted it

    @property
    def is_finished(self) -> bool: ...

    def begin(self, slot: int) -> None:
        """Take a slot."""
        ...

    def unread(self) -> Segment:
        """The tokens to prefill next; none if there are none left."""
        ...

    def prefilled(self, count: int) -> None:
        """Record that the first ``count`` unread tokens are in the cache."""
        ...

    def interrupt(self) -> None:
        """End here."""
        ...


@dataclass(frozen=True)
class ScheduledSequence:
    """A sequence's rows in a decode step: one for its last token, and one more for each drafted token."""

    sequence: Sequence
    first_row: int
    drafts: list[int]

    @property
    def rows(self) -> range:
        return range(self.first_row, self.first_row + 1 + len(self.drafts))


class Scheduler:
    """First come, first served: a free slot goes to the sequence that has waited longest.

    Prompts are prefilled in chunks of at most ``chunk_tokens``, in the order of admission, several prompts in
    one chunk (``model.next_chunk``). Between two chunks, the sequences that decode take a step.

    ``add`` and ``cancel`` may be called by any thread, the rest only by the one that steps the engine.
    """

    def __init__(self, slots: int, chunk_tokens: int = PREFILL_CHUNK) -> None:
        self._chunk_tokens = chunk_tokens
        self._waiting: deque[Scheduled] = deque()
        self._slots = slots
        self._has_cancelled = False
        self.running: list[Scheduled] = []

    def add(self, sequences: Iterable[Scheduled]) -> None:
        """Queue sequences, in the name of this thread."""
        sequences = list(sequences)
        for sequence in sequences:
            sequence.thread = threading.get_ident()
        self._waiting.extend(sequences)

    def cancel(self, sequence: Scheduled) -> None:
        """Have a sequence end before the next step. Takes no lock: the garbage collector calls it too."""
        sequence.is_cancelled = True
        self._has_cancelled = True

    def sequences(self) -> tuple[Scheduled, ...]:
        """All that run or wait."""
        return (*self.running, *tuple(self._waiting))

    def admit(self) -> list[Scheduled]:
        """Give free slots to waiting sequences; returns those that begin."""
        admitted: list[Scheduled] = []
        while self._waiting and len(self.running) < self._slots:
            sequence = self._waiting[0]
            # A call that was cut short here may have left it in both lists.
            if not sequence.is_finished and sequence not in self.running:
                taken = {other.slot for other in self.running}
                sequence.begin(next(slot for slot in range(self._slots) if slot not in taken))
                self.running.append(sequence)
                admitted.append(sequence)
            self._waiting.popleft()
        return admitted

    def retire(self) -> list[Scheduled]:
        """End cancelled sequences, and free the slots of finished ones; returns those that had a slot."""
        if self._has_cancelled:
            self._has_cancelled = False
            for sequence in self.sequences():
                if sequence.is_cancelled:
                    sequence.interrupt()
        finished = [sequence for sequence in self.running if sequence.is_finished]
        if finished:
            self.running = [sequence for sequence in self.running if not sequence.is_finished]
        return finished

    def next_chunk(self) -> list[tuple[Scheduled, Segment]]:
        """The segments to prefill next, each with its sequence."""
        by_slot = {sequence.slot: sequence for sequence in self.running}
        unread = (sequence.unread() for sequence in self.running)
        chunk = next_chunk(unread, self._chunk_tokens)
        return [(by_slot[segment.slot], segment) for segment in chunk]

    def decoding(self) -> list[Sequence]:
        """The sequences that take part in the next decode step."""
        return [s for s in self.running if isinstance(s, Sequence) and s.token_ids and not s.is_finished]

    def schedule(self, sequences: list[Sequence]) -> tuple[list[ScheduledSequence], list[RowInput]]:
        """Give each sequence a row, and one more for each drafted token."""
        # The kernels of a decode step take as many rows as one sequence has with all its drafts.
        max_drafts = (1 + MAX_DRAFTS) // len(sequences) - 1
        scheduled: list[ScheduledSequence] = []
        inputs: list[RowInput] = []
        for sequence in sequences:
            drafts = sequence.draft(max_drafts)
            scheduled.append(ScheduledSequence(sequence, len(inputs), drafts))
            # A row with drafts after it must not end on the device: they may be rejected.
            limit = ENDLESS if drafts else sequence.last_position
            tokens = (sequence.token_ids[-1], *drafts)
            inputs += [
                RowInput(token_id, sequence.slot, position, limit)
                for position, token_id in enumerate(tokens, start=sequence.next_position - 1)
            ]
        return scheduled, inputs

"""Scheduler: decides which sequences run in the next step, and in which slots of the cache."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from adept_fast.arguments import ParameterError
from adept_fast.engine.decode_state import ENDLESS, RowInput
from adept_fast.engine.prefix_cache import (
    MIN_COPIED_TOKENS,
    HeldTokens,
    PrefixCache,
    PrefixCopy,
    common_prefix,
)
from adept_fast.engine.sequence import Sequence
from adept_fast.model import PREFILL_CHUNK, Segment, next_chunk
from adept_fast.sampling import MAX_DRAFTS


class QueueFullError(RuntimeError):
    """More requests wait than may. ``retry_after_seconds``: when there may be room again, as far as known."""

    retry_after_seconds: float = 1.0


def check_room(coming: int, slots: int, max_waiting: int | None, *, waiting: int, free: int) -> None:
    """Raises QueueFullError if more requests would wait than may, ParameterError if they never fit.

    Args:
        free: how many of the slots are.
    """
    if max_waiting is None:
        return
    if coming > max_waiting + slots:
        raise ParameterError(
            f"{coming} prompts and choices came at once; expected at most {max_waiting + slots}, "
            f"of which {slots} run and {max_waiting} wait"
        )
    if waiting + coming > max_waiting + free:
        raise QueueFullError(
            f"{waiting} requests wait and {coming} more came; expected at most {max_waiting} waiting"
        )


class Scheduled(Protocol):
    """A sequence as the scheduler sees it, whether it generates or is scored."""

    slot: int
    is_cancelled: bool
    thread: int  # that submitted it

    @property
    def is_finished(self) -> bool: ...

    @property
    def deadline(self) -> float | None:
        """The time (``time.monotonic``) at which it ends unfinished."""
        ...

    def begin(self, slot: int) -> None:
        """Take a slot."""
        ...

    def wanted(self) -> HeldTokens:
        """The tokens of the prompt that may be taken from the prefix cache instead of being prefilled."""
        ...

    def reuse(self, count: int) -> None:
        """Record that the first ``count`` tokens of ``wanted`` are in the slot."""
        ...

    def held(self) -> HeldTokens:
        """The tokens in the slot that another sequence may reuse."""
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

    def expire(self) -> None:
        """End here, as the deadline has passed."""
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


@dataclass(frozen=True)
class Limits:
    """How much is done at once.

    Args:
        chunk_tokens: of prompts in one chunk while no sequence decodes.
        step_tokens: of prompts and decoding rows in one step while a sequence decodes, which bounds the time
            between its tokens. At least one token of a prompt is read.
        max_waiting: requests that wait for a slot; None for any number.
    """

    chunk_tokens: int = PREFILL_CHUNK
    step_tokens: int = PREFILL_CHUNK
    max_waiting: int | None = None


class Scheduler:
    """First come, first served: a free slot goes to the sequence that has waited longest.

    Prompts are prefilled in chunks, in the order of admission, several prompts in one chunk
    (``model.next_chunk``). Between two chunks, the sequences that decode take a step. A prompt that begins as
    an earlier one that is still read waits for it and copies the common prefix.

    ``add`` and ``cancel`` may be called by any thread, the rest only by the one that steps the engine.

    Args:
        prefixes: what the slots hold; None if sequences share nothing.
    """

    def __init__(self, slots: int, limits: Limits | None = None, prefixes: PrefixCache | None = None) -> None:
        self.limits = limits or Limits()
        self._prefixes = prefixes
        self._waiting: deque[Scheduled] = deque()
        self._slots = slots
        self._has_cancelled = False
        self.running: list[Scheduled] = []

    def add(self, sequences: Iterable[Scheduled]) -> None:
        """Queue sequences, in the name of this thread, or none of them.

        Raises QueueFullError, or ParameterError for more than could ever run and wait together.
        """
        sequences = list(sequences)
        waiting, free = len(self._waiting), self._slots - len(self.running)
        check_room(len(sequences), self._slots, self.limits.max_waiting, waiting=waiting, free=free)
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

    @property
    def waiting(self) -> int:
        """How many sequences wait for a slot."""
        return len(self._waiting)

    def admit(self) -> list[Scheduled]:
        """Give free slots to waiting sequences; returns those that begin."""
        admitted: list[Scheduled] = []
        while self._waiting and len(self.running) < self._slots:
            sequence = self._waiting[0]
            # A call that was cut short here may have left it in both lists.
            if not sequence.is_finished and sequence not in self.running:
                self._begin(sequence)
                self.running.append(sequence)
                admitted.append(sequence)
            self._waiting.popleft()
        return admitted

    def _begin(self, sequence: Scheduled) -> None:
        taken = {other.slot for other in self.running}
        free = [slot for slot in range(self._slots) if slot not in taken]
        if self._prefixes is None:
            sequence.begin(free[0])
            return
        slot, held = self._prefixes.take(free, sequence.wanted())
        sequence.begin(slot)
        sequence.reuse(held)

    def retire(self) -> list[Scheduled]:
        """End cancelled and late sequences, and free the slots of finished ones; returns these."""
        self._end_late()
        if self._has_cancelled:
            self._has_cancelled = False
            for sequence in self.sequences():
                if sequence.is_cancelled:
                    sequence.interrupt()
                    self._drop(sequence)
        finished = [sequence for sequence in self.running if sequence.is_finished]
        if finished:
            self.running = [sequence for sequence in self.running if not sequence.is_finished]
        if self._prefixes is not None:
            for sequence in finished:
                self._prefixes.keep(sequence.slot, sequence.held())
        return finished

    def _end_late(self) -> None:
        now = time.monotonic()
        for sequence in self.sequences():
            if sequence.deadline is not None and sequence.deadline <= now and not sequence.is_finished:
                sequence.expire()
                self._drop(sequence)

    def _drop(self, sequence: Scheduled) -> None:
        """A finished sequence no longer waits."""
        with contextlib.suppress(ValueError):  # it runs
            self._waiting.remove(sequence)

    def copies(self) -> list[PrefixCopy]:
        """The prefixes to copy before the next chunk."""
        if self._prefixes is None or not (readers := self._readers()):
            return []
        running = {sequence.slot: sequence for sequence in self.running}
        held = [
            (slot, running[slot].held() if slot in running else self._prefixes.kept(slot))
            for slot in range(self._slots)
        ]
        copies = []
        for sequence in readers:
            wanted = sequence.wanted()
            tokens, source = max((common_prefix(tokens, wanted), slot) for slot, tokens in held)
            if tokens >= sequence.unread().start + MIN_COPIED_TOKENS:
                copies.append(PrefixCopy(source, sequence.slot, tokens))
        return copies

    def copied(self, copy: PrefixCopy) -> None:
        """Record that a prefix was copied."""
        for sequence in self.running:
            if sequence.slot == copy.destination:
                sequence.reuse(copy.tokens)

    def next_chunk(self) -> list[tuple[Scheduled, Segment]]:
        """The segments to prefill next, each with its sequence."""
        by_slot = {sequence.slot: sequence for sequence in self.running}
        max_tokens, rows = self.limits.chunk_tokens, len(self.decoding())
        if rows:
            max_tokens = min(max_tokens, max(1, self.limits.step_tokens - rows))
        chunk = next_chunk((sequence.unread() for sequence in self._readers()), max_tokens)
        return [(by_slot[segment.slot], segment) for segment in chunk]

    def _readers(self) -> list[Scheduled]:
        """The sequences with unread tokens, but for those that wait for an earlier one to read a prefix."""
        readers: list[Scheduled] = []
        for sequence in self.running:
            if not (unread := sequence.unread()).ids:
                continue
            if self._prefixes is not None:
                wanted, enough = sequence.wanted(), unread.start + MIN_COPIED_TOKENS
                shared = [(common_prefix(other.wanted(), wanted), other.unread().start) for other in readers]
                if any(tokens >= enough and tokens > read for tokens, read in shared):
                    continue
            readers.append(sequence)
        return readers

    def forget_prefixes(self) -> None:
        """Reuse nothing of what free slots hold, as another one writes to them."""
        if self._prefixes is not None:
            self._prefixes = PrefixCache(self._slots)

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

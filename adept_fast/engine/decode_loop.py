"""DecodeLoop: prompts into the cache, then steps over all of them, which a GPU runs ahead of the host."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from adept_fast import ops
from adept_fast.engine.decode_state import ENDLESS, DecodeState, Place, Rows
from adept_fast.engine.graphs import CaptureReport, DecodeGraphs, Launching
from adept_fast.engine.scoring import TokenLogprobs
from adept_fast.engine.sequence import Sequence
from adept_fast.engine.speculation import kept_tokens
from adept_fast.kv_cache import StaticKVCache
from adept_fast.memory.workspace import max_rows
from adept_fast.model import Persimmon
from adept_fast.ops.cuda import MOST_TOKENS
from adept_fast.sampling import MOST_DRAFTS, Sampler, SamplingParams


@dataclass(frozen=True)
class _Turn:
    """What a sequence has in a step: a row, and one more for each guess."""

    sequence: Sequence
    first_row: int
    drafts: list[int]

    @property
    def rows(self) -> range:
        return range(self.first_row, self.first_row + 1 + len(self.drafts))


@dataclass(frozen=True)
class _Launched:
    """A step that has not been read yet."""

    turns: list[_Turn]
    numbers: list[int]  # of the step, for each row
    logprobs: TokenLogprobs | None


# By whether the device is a GPU: there, more tokens than the kernels take, so that GEMMs load too.
_WARMUP_TOKENS = {False: 2, True: 2 * MOST_TOKENS}
_WARMUP_PARAMS = (SamplingParams(), SamplingParams(temperature=1.0, top_k=2, top_p=0.5, min_p=0.1, seed=0))


class DecodeLoop:
    """Generates sequences side by side, on one model and one cache.

    While no sequence ends and none guesses, a step needs nothing of the host but to be launched, and with
    several in flight the host reads behind. The device knows of most ends itself and leaves those rows out;
    what was launched past any other end is left unread. Rows change hands only when all is read.
    """

    def __init__(
        self, model: Persimmon, cache: StaticKVCache, vocab_size: int, launching: Launching | None = None
    ) -> None:
        rows, slots, device = max_rows(cache.max_batch_size), cache.max_batch_size, model.device
        launching = launching or Launching.on(device, rows, cache.max_seq_len)
        self._model = model
        self._cache = cache
        self._state = DecodeState(rows, slots, vocab_size, device)
        self._sampler = Sampler(slots, vocab_size, device, by_host=not launching.captured)
        idle = DecodeState(rows, slots, vocab_size, device) if launching.captured else self._state
        self.steps = launching.steps(
            lambda rows, length: step_on_device(model, cache, self._sampler, self._state.rows(rows), length),
            lambda rows, length: step_on_device(model, cache, self._sampler, idle.rows(rows), length),
        )
        self._steps_in_flight = launching.steps_in_flight
        self._turns: list[_Turn] = []  # as the rows are placed; empty where they must be placed anew
        self._launched: deque[_Launched] = deque()

    def _forget_last_run(self) -> None:
        """Of which there may be some left, where it did not come to its end."""
        self._launched.clear()
        self._turns = []
        self._state.resume_count()

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Read a prompt and take a step, which are thrown away, so that the first one waits for no library.

        Where steps are captured, captures those that all slots may need.
        """
        self._forget_last_run()
        device, slot = self._model.device, 0
        tokens = min(_WARMUP_TOKENS[device.type == "cuda"], self._cache.max_seq_len)
        ids = torch.zeros(tokens, dtype=torch.int64, device=device)
        slots, last = (
            torch.tensor([slot], device=device, dtype=torch.int64),
            torch.tensor([tokens - 1], device=device, dtype=torch.int64),
        )
        counts = self._model.unit_counts.clone()  # of steps that somebody asked for
        for params in _WARMUP_PARAMS:
            self._sampler.start(slot, params, ids)
            self._sampler.choose(self._model.prefill(ids, self._cache, slot), slots, last).tolist()
            logits = self._model.decode_step(ids[-1:], slots, last, self._cache, tokens)
            self._sampler.choose(logits, slots, last).tolist()
        self._sampler.stop(slot)
        self._model.unit_counts.copy_(counts)
        if isinstance(self.steps, DecodeGraphs):
            self.steps.capture_up_to(self._cache.max_batch_size)

    def captures(self) -> CaptureReport | None:
        """What capturing has taken; None where steps are not captured."""
        return self.steps.report if isinstance(self.steps, DecodeGraphs) else None

    def run(self, sequences: list[Sequence]) -> Iterator[str]:
        """Generate all sequences to their end; yields text as it becomes certain.

        A slot that falls free takes the next sequence that waits. Only one run at a time: callers see
        to that. Raises GenerationError where logits are no numbers.
        """
        self._forget_last_run()
        waiting = deque(sequence for sequence in sequences if sequence.finish_reason is None)
        running: list[Sequence] = []
        free = list(reversed(range(self._cache.max_batch_size)))
        while waiting or running:
            if waiting and free:
                sequence = waiting.popleft()
                sequence.begin(free.pop())
                running.append(sequence)
                pieces = self._prefill(sequence)
            else:
                pieces = self._decode(running)
            running = self._retire(running, free)
            yield from pieces

    def _retire(self, running: list[Sequence], free: list[int]) -> list[Sequence]:
        """The sequences that go on; the slots of the others fall free."""
        for sequence in running:
            if sequence.finish_reason is not None:
                free.append(sequence.slot)
                self._sampler.stop(sequence.slot)
                self._turns = []
        return [sequence for sequence in running if sequence.finish_reason is None]

    @torch.inference_mode()
    def _prefill(self, sequence: Sequence) -> list[str]:
        device, slot = self._model.device, sequence.slot
        ids = torch.tensor(sequence.prompt_ids, device=device, dtype=torch.int64)  # [tokens]
        self._sampler.start(slot, sequence.params, ids)
        self._state.end_at(slot, sequence.end_ids)
        self._turns = []
        logits = self._model.prefill(ids, self._cache, slot)  # [1, vocab]
        chosen = self._sampler.choose(
            logits,
            torch.tensor([slot], device=device, dtype=torch.int64),
            torch.tensor([len(sequence.prompt_ids) - 1], device=device, dtype=torch.int64),
        )  # [1]
        (token_id,) = chosen.tolist()
        asked = sequence.params.logprobs
        logprob = None if asked is None else TokenLogprobs(logits, chosen, asked).of(0, asked)
        return [sequence.accept(token_id, logprob)]

    @torch.inference_mode()
    def _decode(self, running: list[Sequence]) -> list[str]:
        guessing = any(sequence.params.prompt_lookup for sequence in running)
        most = 1 if guessing else self._steps_in_flight  # a guess takes up what was chosen last
        while len(self._launched) < most and any(s.room > len(self._launched) for s in running):
            if guessing or not self._turns:
                self._turns = self._place(running)
            self._launch(self._turns)
        pieces = self._read()
        if any(sequence.finish_reason is not None for sequence in running):
            while self._launched:
                pieces += self._read()
        return pieces

    def _place(self, running: list[Sequence]) -> list[_Turn]:
        """Give each sequence a row, and one more for each guess; nothing may be unread."""
        # As many guesses as leave the step with the rows that kernels for a few are made for.
        most = (1 + MOST_DRAFTS) // len(running) - 1
        turns: list[_Turn] = []
        places: list[Place] = []
        for sequence in running:
            drafts = sequence.draft(most)
            turns.append(_Turn(sequence, len(places), drafts))
            limit = ENDLESS if drafts else sequence.last_position
            places += [
                Place(token_id, sequence.slot, position, limit)
                for position, token_id in enumerate(
                    (sequence.token_ids[-1], *drafts), start=sequence.next_position - 1
                )
            ]
        self._state.place(places)
        return turns

    def _launch(self, turns: list[_Turn]) -> None:
        ahead = len(self._launched)
        longest = max(turn.sequence.next_position + len(turn.drafts) for turn in turns) + ahead
        rows, length = self.steps.shapes.fitting(turns[-1].rows.stop, min(longest, self._cache.max_seq_len))
        logits = self.steps.launch(rows, length)  # [rows, vocab]
        asked = [n for turn in turns if (n := turn.sequence.params.logprobs) is not None]
        # Before the next step overwrites logits and ids.
        logprobs = TokenLogprobs(logits, self._state.rows(rows).ids, max(asked)) if asked else None
        self._launched.append(_Launched(turns, self._state.count_step(rows), logprobs))

    def _read(self) -> list[str]:
        """Take what the oldest step chose."""
        launched = self._launched.popleft()
        pieces = []
        for turn in launched.turns:
            sequence, asked = turn.sequence, turn.sequence.params.logprobs
            if sequence.finish_reason is not None:
                continue  # launched before its end was known
            chosen = [self._state.read(row, launched.numbers[row]) for row in turn.rows]
            if ops.ABSENT in chosen:
                raise RuntimeError(f"slot {sequence.slot} has ended on the device before its text has")
            kept = kept_tokens(chosen, turn.drafts)
            logprobs = [
                launched.logprobs.of(row, asked) if launched.logprobs and asked is not None else None
                for row in turn.rows[: len(kept)]
            ]
            pieces.append(sequence.accept_step(kept, logprobs, len(turn.drafts)))
        return pieces


def step_on_device(
    model: Persimmon, cache: StaticKVCache, sampler: Sampler, rows: Rows, length: int
) -> Tensor:
    """One decode step from a state to that state, without the host: its logits, float32 [rows, vocab].

    ``length`` bounds the lengths of the rows' sequences, their new tokens included.
    """
    logits = model.decode_step(rows.ids, rows.slots, rows.positions, cache, length)
    chosen = sampler.choose(logits, rows.slots, rows.positions)  # [rows]
    ops.advance(chosen, rows.ids, rows.slots, rows.positions, rows.limits, rows.ends, rows.counts, rows.ring)
    return logits

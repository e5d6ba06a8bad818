"""ModelRunner: runs a model on a cache. It owns the decode state, the sampler and the captured steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from adept_fast import ops
from adept_fast.engine.decode_state import DecodeState, RowInput, Rows
from adept_fast.engine.graphs import CaptureReport, CudaGraphRunner, LaunchPolicy
from adept_fast.engine.scoring import TokenLogprobs
from adept_fast.kv_cache import StaticKVCache
from adept_fast.memory.workspace import max_rows
from adept_fast.model import Persimmon, Segment
from adept_fast.ops.transfer import to_device
from adept_fast.sampling import Sampler, SamplingParams

_WARMUP_TOKENS = 2
_WARMUP_PARAMS = (SamplingParams(), SamplingParams(temperature=1.0, top_k=2, top_p=0.5, min_p=0.1, seed=0))


@dataclass(frozen=True)
class PendingStep:
    """A launched step that was not read yet."""

    numbers: list[int]  # of the step, for each row
    logits: Tensor  # float32 [rows, vocab], valid until the next step
    logprobs: TokenLogprobs | None


class ModelRunner:
    """Reads segments of prompts, and launches and reads decode steps, for the sequences in a cache's slots.

    Decode steps take their inputs from the state on the device, and leave it ready for the next one. So
    several may be launched before the first is read, as long as their rows stay the same.

    Args:
        vocab_size: of the logits that are sampled from.
        policy: how steps are launched; None for what suits the device.
    """

    def __init__(
        self, model: Persimmon, cache: StaticKVCache, vocab_size: int, policy: LaunchPolicy | None = None
    ) -> None:
        device, slots = model.device, cache.max_batch_size
        self.max_rows = max_rows(slots)
        policy = policy or LaunchPolicy.on(device, self.max_rows, cache.max_seq_len)
        self._state = DecodeState(self.max_rows, slots, vocab_size, device)
        self._sampler = Sampler(slots, vocab_size, device, skips_unused=policy.capture is None)
        # Rows without sequences, for the warm-up before a capture.
        captured = policy.capture is not None
        self._idle = DecodeState(self.max_rows, slots, vocab_size, device) if captured else self._state
        self.use_cache(model, cache, policy)

    def use_cache(self, model: Persimmon, cache: StaticKVCache, policy: LaunchPolicy) -> None:
        """Run on another cache of as many slots, and a model with its length. Steps are captured anew."""
        self.model, self.cache = model, cache
        self.steps_in_flight = policy.steps_in_flight
        self.step_runner = policy.runner(
            lambda rows, length: self._step(self._state.rows(rows), length),
            lambda rows, length: self._step(self._idle.rows(rows), length),
        )

    def start(
        self,
        slot: int,
        params: SamplingParams,
        seen_ids: Sequence[int],
        *,
        generated_ids: Sequence[int] = (),
        end_ids: Sequence[int] = (),
    ) -> None:
        """Give a slot to a sequence.

        Args:
            seen_ids: the tokens before the text that a repetition penalty counts.
            generated_ids: the text so far, if the sequence goes on; every penalty counts it.
            end_ids: the tokens that end the text.
        """
        self._sampler.start(slot, params, seen_ids, generated_ids=generated_ids)
        self._state.end_at(slot, end_ids)

    def stop(self, slot: int) -> None:
        """Take a slot back: its sampling settings no longer count."""
        self._sampler.stop(slot)

    def check(self) -> None:
        """Raises RankError if a rank that has a part of the model has failed."""

    def recover(self) -> None:
        """Make the count of steps consistent after a call that was cut short; discards steps in flight."""
        self._state.resume_count()

    def prefill(self, segments: Sequence[Segment]) -> Tensor:
        """Read tokens of several sequences into their slots, at most ``PREFILL_CHUNK``; does not wait.

        Returns the last hidden states, segment after segment: float32 [tokens, hidden].
        """
        return self.model.prefill_chunk(segments, self.cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits after tokens that were prefilled, of the ids in use: float32 [tokens, vocab]."""
        return self.model.logits(hidden)

    def all_logits(self, hidden: Tensor) -> Tensor:
        """Those of all ids that are loaded, for scores: float32 [tokens, rows]."""
        return self.model.all_logits(hidden)

    def copy_prefix(self, source: int, destination: int, tokens: int) -> None:
        """Copy the keys and values of a slot's first tokens into another slot; does not wait."""
        self.cache.copy_prefix(source, destination, tokens)

    def sample(self, logits: Tensor, slots: Sequence[int], positions: Sequence[int]) -> Tensor:
        """The token that follows each position of a slot: int64 [rows], from logits float32 [rows, vocab]."""
        device_slots, device_positions = to_device([slots, positions], self.model.device)  # each [rows]
        return self._sampler.choose(logits, device_slots, device_positions)

    def place(self, inputs: Sequence[RowInput]) -> None:
        """Set the rows of the next steps. No step may be in flight."""
        self._state.place(inputs)

    def launch(self, rows: int, length: int, top_logprobs: int | None = None) -> PendingStep:
        """Queue a step over the first rows, whose sequences have at most ``length`` tokens with the new ones.

        Args:
            top_logprobs: how many of the likeliest tokens ``PendingStep.logprobs`` has; None for no logprobs.
        """
        rows, length = self.step_runner.buckets.fitting(rows, min(length, self.cache.max_seq_len))
        logits = self.launch_step(rows, length)  # [rows, vocab]
        logprobs = None
        if top_logprobs is not None:  # before the next step overwrites logits and ids
            logprobs = TokenLogprobs(logits, self._state.rows(rows).ids, top_logprobs)
        return PendingStep(self._state.count_step(rows), logits, logprobs)

    def launch_step(self, rows: int, length: int) -> Tensor:
        """Queue a step of a shape of the buckets: its logits, float32 [rows, vocab]."""
        return self.step_runner.launch(rows, length)

    def read(self, step: PendingStep, rows: Sequence[int]) -> list[int]:
        """The tokens that a step chose for these rows: ids, ``ops.INVALID`` or ``ops.ABSENT``; waits."""
        return [self._state.read(row, step.numbers[row]) for row in rows]

    def warmup(self) -> None:
        """Run a prompt and a step and discard the results, so that the first request waits for no library.

        If steps are captured, capture all shapes that the slots may need. No sequence may use slot 0.
        """
        self._state.resume_count()
        slot, tokens = 0, min(_WARMUP_TOKENS, self.cache.max_seq_len)
        counts = self.model.neuron_counts.clone()  # of requested steps only
        for params in _WARMUP_PARAMS:
            self._sampler.start(slot, params, [0])
            hidden = self.prefill([Segment(slot, 0, [0] * tokens)])
            self.sample(self.logits(hidden[-1:]), [slot], [tokens - 1]).tolist()
            self.sample(self.decode_first_token(slot, tokens - 1), [slot], [tokens - 1]).tolist()
        self._sampler.stop(slot)
        self.model.neuron_counts.copy_(counts)
        self.capture_steps()

    def decode_first_token(self, slot: int, position: int) -> Tensor:
        """A step that reads the token 0 at a position of a slot, not captured: logits, float32 [1, vocab]."""
        ids, slots, positions = to_device([[0], [slot], [position]], self.model.device)  # each [1]
        return self.model.decode_step(ids, slots, positions, self.cache, position + 1)

    def capture_steps(self) -> None:
        """Capture all shapes of steps that the slots may need, if steps are captured."""
        if isinstance(self.step_runner, CudaGraphRunner):
            self.step_runner.capture_up_to(self.cache.max_batch_size)

    def captures(self) -> CaptureReport | None:
        """The cost of capturing so far; None if steps are not captured."""
        return self.step_runner.report if isinstance(self.step_runner, CudaGraphRunner) else None

    def _step(self, rows: Rows, length: int) -> Tensor:
        """One decode step from a state to that state, without the host: logits, float32 [rows, vocab]."""
        logits = self.model.decode_step(rows.ids, rows.slots, rows.positions, self.cache, length)
        chosen = self._sampler.choose(logits, rows.slots, rows.positions)  # [rows]
        ops.update_decode_state(
            chosen, rows.ids, rows.slots, rows.positions, rows.limits, rows.ends, rows.counts, rows.token_ring
        )
        return logits

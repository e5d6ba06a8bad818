"""Engine: runs requests side by side on one model. They join and leave between steps."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from adept_fast import ops
from adept_fast.arguments import ParameterError, integer
from adept_fast.engine.admission import Admission
from adept_fast.engine.model_runner import ModelRunner, PendingStep
from adept_fast.engine.prefix_cache import PrefixCache
from adept_fast.engine.request_handle import RequestHandle
from adept_fast.engine.scheduler import Limits, Scheduled, ScheduledSequence, Scheduler
from adept_fast.engine.scoring import (
    ScoredSequence,
    Target,
    TokenLogprobs,
    prompt_logprobs,
    score_targets,
)
from adept_fast.engine.sequence import Request, Sequence, TokenLogprob, check_prompt
from adept_fast.engine.speculation import kept_tokens
from adept_fast.engine.turn import Turns
from adept_fast.model import Segment
from adept_fast.ops.transfer import to_device, to_host
from adept_fast.sampling import MAX_LOGPROBS
from adept_fast.tokenizer.tokenizer import Tokenizer


class Engine:
    """Steps a ModelRunner as its Scheduler decides.

    Any number of threads may submit requests and wait for them. One of those who wait steps the engine for
    all, until its own request is served; then another one goes on.

    Args:
        guard: makes a context for each step, which may turn its errors into others.
        admission: how much is taken in at once; nothing is shared by default.
    """

    def __init__(
        self,
        runner: ModelRunner,
        tokenizer: Tokenizer,
        guard: Callable[[], AbstractContextManager[None]] = nullcontext,
        admission: Admission = Admission(),  # noqa: B008 (it is immutable)
    ) -> None:
        self.runner = runner
        self._tokenizer = tokenizer
        self._guard = guard
        slots, chunk_tokens = runner.cache.max_batch_size, runner.model.chunk_tokens
        self._scheduler = Scheduler(
            slots,
            Limits(chunk_tokens, admission.step_tokens_of(runner.model, slots), admission.max_waiting),
            PrefixCache(slots) if admission.prefix_cache else None,
        )
        self._arrival = threading.Event()  # of requests, for ``run``
        self._is_stopping = False
        self._turns = Turns(after_fork=self._forget_other_threads)
        self._scheduled: list[ScheduledSequence] = []  # the rows of the steps in flight
        self._pending: deque[tuple[PendingStep, list[ScheduledSequence]]] = deque()
        self._is_unfinished = False  # the last step was cut short

    @property
    def max_seq_len(self) -> int:
        return self.runner.cache.max_seq_len

    @property
    def step_tokens(self) -> int:
        """How many tokens of prompts and decoding rows a step has at most."""
        return self._scheduler.limits.step_tokens

    def submit(self, request: Request) -> RequestHandle:
        """Queue a request. Raises ParameterError for its prompt."""
        return self.submit_all([request])[0]

    def submit_all(self, requests: SequenceOf[Request]) -> list[RequestHandle]:
        """Queue requests at once, so that their prompts are prefilled together."""
        handles = [self.prepare(request) for request in requests]
        self.begin(handles)
        return handles

    def prepare(self, request: Request) -> RequestHandle:
        """A handle of a request that is not queued yet.

        Raises ParameterError for its prompt, and for token ids of its ``logit_bias``.
        """
        if not request.prompt_ids:
            raise ParameterError("prompt has no tokens; expected at least one")
        self.check_prompt(request.prompt_ids)
        request.params.check_vocabulary(self._tokenizer.vocab_size)
        if request.prompt_logprobs is not None:
            integer("prompt_logprobs", request.prompt_logprobs, 0, MAX_LOGPROBS)
        # The last token is never read back, so it needs no position.
        room = self.max_seq_len - len(request.prompt_ids) + 1
        reusable = self.runner.model.has_one_order
        return RequestHandle(self, Sequence(request, self._tokenizer, room, decoded_is_reusable=reusable))

    def check_prompt(self, ids: SequenceOf[int]) -> None:
        """Raises ParameterError for ids that are not in the vocabulary, or more than the cache holds."""
        check_prompt(ids, self._tokenizer.vocab_size, self.max_seq_len)

    def begin(self, handles: SequenceOf[RequestHandle]) -> None:
        """Queue requests that were prepared. Raises QueueFullError, and then queues none."""
        self._scheduler.add([handle.sequence for handle in handles])
        self._arrival.set()

    def run(self, after_step: Callable[[], None]) -> None:
        """Step for all requests as they come, until ``stop_running``. Raises what a step raises."""

        def step() -> None:
            self.step()
            after_step()

        def is_idle() -> bool:
            return self._is_stopping or not self._scheduler.sequences()

        while not self._is_stopping:
            self._arrival.clear()
            self.runner.check()
            self._turns.work_until(is_idle, step)
            if is_idle() and not self._is_stopping:
                self._arrival.wait()
        self._is_stopping = False  # it may be called again

    def wake(self) -> None:
        """Have ``run`` look whether it can still run."""
        self._arrival.set()

    def stop_running(self) -> None:
        """Have ``run`` return after the current step. Requests stay as they are."""
        self._is_stopping = True
        self._arrival.set()

    def counts(self) -> tuple[int, int]:
        """How many sequences have a slot, and how many wait for one."""
        return len(self._scheduler.running), self._scheduler.waiting

    def score(self, sequences: SequenceOf[ScoredSequence]) -> Iterator[ScoredSequence]:
        """Queue sequences, and yield them in order once they are scored. Raises what a step raises."""
        self._scheduler.add(sequences)
        try:
            for sequence in sequences:
                self.wait(lambda: sequence.is_finished, sequences)  # noqa: B023 (called before the next one)
                yield sequence
        finally:
            for sequence in sequences:
                self.cancel(sequence)

    def cancel(self, sequence: Scheduled) -> None:
        """End a sequence at the next step. Takes no lock: the garbage collector calls it too."""
        if not sequence.is_finished:
            self._scheduler.cancel(sequence)

    def wait(self, is_done: Callable[[], bool], waited_for: SequenceOf[Scheduled]) -> None:
        """Return when ``is_done()``; step the engine until then, unless another thread does.

        An error of a step is raised in the thread that stepped, and ends the sequences ``waited_for`` there;
        the others go on.
        """
        try:
            self._turns.work_until(is_done, self.step)
        except BaseException:
            for sequence in waited_for:
                self.cancel(sequence)
            raise

    def end(self, sequences: SequenceOf[Scheduled]) -> None:
        """Cancel sequences and wait until they have ended, unless this thread is in the middle of a step."""
        for sequence in sequences:
            self.cancel(sequence)

        def interrupt() -> None:
            for sequence in sequences:
                sequence.interrupt()
            self._retire()

        if not self._turns.is_held_here():
            self._turns.work_until(lambda: all(s.is_finished for s in sequences), interrupt)

    def warmup(self) -> None:
        """Run the ModelRunner's warm-up, once all requests are served."""
        is_done = False
        while not is_done:
            self._turns.work_until(lambda: not self._scheduler.sequences(), self.step)
            with self._turns.hold(), torch.inference_mode():
                if not self._scheduler.running:  # another thread may have had the turn in between
                    self._scheduler.forget_prefixes()
                    self.runner.warmup()
                    is_done = True

    @torch.inference_mode()
    def step(self) -> None:
        """One chunk of the prompts that wait, and one decode step of the sequences that are past theirs."""
        with self._guard():
            if self._is_unfinished:
                self._recover()
            self._is_unfinished = True
            self._retire()
            for sequence in self._scheduler.admit():
                if isinstance(sequence, Sequence):
                    self._start(sequence)
            while copies := self._scheduler.copies():  # a copy may be another one's source
                for copy in copies:
                    self.runner.copy_prefix(copy.source, copy.destination, copy.tokens)
                    self._scheduler.copied(copy)
            decoding = self._scheduler.decoding()
            if chunk := self._scheduler.next_chunk():
                self._prefill(chunk)
            if decoding:
                self._decode(decoding)
            self._retire()
            self._is_unfinished = False

    def _start(self, sequence: Sequence) -> None:
        """Have the runner go on with a sequence, from its tokens so far."""
        self.runner.start(
            sequence.slot,
            sequence.params,
            sequence.prompt_ids,
            generated_ids=sequence.token_ids,
            end_ids=sequence.end_ids,
        )

    def _retire(self) -> None:
        for sequence in self._scheduler.retire():
            self.runner.stop(sequence.slot)

    def _recover(self) -> None:
        """Go on after a step that was cut short, by Ctrl-C or an error, from the tokens accepted so far."""
        self._pending.clear()
        self._scheduled = []
        running = [s for s in self._scheduler.running if isinstance(s, Sequence)]
        for sequence in running:
            sequence.resume()
            self._start(sequence)
        self.runner.recover()

    def _prefill(self, chunk: list[tuple[Scheduled, Segment]]) -> None:
        """Read a chunk, sample the first tokens of prompts that end in it, and score; waits once."""
        hidden = self.runner.prefill([segment for _, segment in chunk])  # [tokens, hidden]
        targets: list[tuple[ScoredSequence, Target]] = []
        ended: list[tuple[Sequence, int]] = []  # with the row of their prompt's last token
        first_row = 0
        for sequence, segment in chunk:
            last_row = first_row + len(segment.ids) - 1
            if isinstance(sequence, ScoredSequence):
                targets += [(sequence, t) for t in sequence.targets(first_row, len(segment.ids))]
            elif isinstance(sequence, Sequence):
                if sequence.prompt_logprobs is not None:
                    self._score_prompt(sequence, segment, hidden[first_row : last_row + 1])
                if segment.end == len(sequence.prompt_ids) and sequence.room:
                    ended.append((sequence, last_row))
            first_row = last_row + 1
        results: list[Tensor] = []
        logprobs = None
        if targets:
            results += score_targets(self.runner.all_logits, hidden, [target for _, target in targets])
        if ended:
            chosen, logprobs = self._sample_first(hidden, ended)
            results.append(chosen)
        values = to_host(results) if results else []
        if targets:
            for (scored, target), logprob, is_likeliest in zip(targets, *values[:2], strict=True):
                scored.add(target, logprob, bool(is_likeliest))
        for sequence, segment in chunk:
            sequence.prefilled(len(segment.ids))
        for row, (sequence, _) in enumerate(ended):
            sequence.accept([int(values[-1][row])], _logprobs_of(sequence, logprobs, [row]))

    def _score_prompt(self, sequence: Sequence, segment: Segment, hidden: Tensor) -> None:
        """Score the tokens of a prompt that those of a segment predict; waits."""
        predicted = sequence.prompt_ids[segment.start + 1 : segment.end + 1]
        if predicted:
            count = sequence.prompt_logprobs or 0
            states = hidden[: len(predicted)]
            sequence.add_prompt_logprobs(prompt_logprobs(self.runner.all_logits, states, predicted, count))

    def _sample_first(
        self, hidden: Tensor, ended: list[tuple[Sequence, int]]
    ) -> tuple[Tensor, TokenLogprobs | None]:
        """The token after each prompt, int64 [prompts], from the hidden states of their last tokens."""
        sequences = [sequence for sequence, _ in ended]
        (rows,) = to_device([[row for _, row in ended]], hidden.device)
        logits = self.runner.logits(hidden[rows])  # [prompts, vocab]
        positions = [len(sequence.prompt_ids) - 1 for sequence in sequences]
        chosen = self.runner.sample(logits, [sequence.slot for sequence in sequences], positions)
        top = _max_logprobs(sequences)
        return chosen, None if top is None else TokenLogprobs(logits, chosen, top)

    def _decode(self, decoding: list[Sequence]) -> None:
        """Launch steps, as many as may be in flight, and read the oldest."""
        if [entry.sequence for entry in self._scheduled] != decoding:  # the rows change
            self._read_all()
            self._scheduled = []
            decoding = [sequence for sequence in decoding if not sequence.is_finished]
            if not decoding:
                return
        drafting = any(sequence.params.prompt_lookup for sequence in decoding)
        max_in_flight = 1 if drafting else self.runner.steps_in_flight  # drafts follow the last token
        while len(self._pending) < max_in_flight and any(s.room > len(self._pending) for s in decoding):
            if drafting or not self._scheduled:
                self._scheduled, inputs = self._scheduler.schedule(decoding)
                self.runner.place(inputs)
            self._launch(self._scheduled)
        self._read()
        if any(sequence.is_finished for sequence in decoding):
            self._read_all()

    def _launch(self, scheduled: list[ScheduledSequence]) -> None:
        ahead = len(self._pending)
        length = max(entry.sequence.next_position + len(entry.drafts) for entry in scheduled) + ahead
        top = _max_logprobs([entry.sequence for entry in scheduled])
        self._pending.append((self.runner.launch(scheduled[-1].rows.stop, length, top), scheduled))

    def _read_all(self) -> None:
        while self._pending:
            self._read()

    def _read(self) -> None:
        """Add the tokens of the oldest step to their sequences."""
        step, scheduled = self._pending.popleft()
        for entry in scheduled:
            sequence = entry.sequence
            if sequence.is_finished:
                continue  # launched before its end was known
            chosen = self.runner.read(step, entry.rows)
            if ops.ABSENT in chosen:
                raise RuntimeError(f"slot {sequence.slot} has ended on the device before its text has")
            kept = kept_tokens(chosen, entry.drafts)
            logprobs = _logprobs_of(sequence, step.logprobs, entry.rows[: len(kept)])
            sequence.accept_step(kept, logprobs, len(entry.drafts))

    def _forget_other_threads(self) -> None:
        """In the child of a fork: cancel the requests of threads that the child does not have."""
        self._is_unfinished = True  # a thread may have been in the middle of a step
        for sequence in self._scheduler.sequences():
            if sequence.thread != threading.get_ident():
                self.cancel(sequence)


def _max_logprobs(sequences: SequenceOf[Sequence]) -> int | None:
    """The largest number of logprobs that a sequence requests; None if none requests any."""
    return max((s.params.logprobs for s in sequences if s.params.logprobs is not None), default=None)


def _logprobs_of(
    sequence: Sequence, logprobs: TokenLogprobs | None, rows: SequenceOf[int]
) -> list[TokenLogprob | None]:
    count = sequence.params.logprobs
    return [None if logprobs is None or count is None else logprobs.of(row, count) for row in rows]

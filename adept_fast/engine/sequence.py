"""Sequence: a generation request and its running state, from the prompt's first token to the last event."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Literal

from adept_fast.arguments import ParameterError
from adept_fast.engine.prefix_cache import HeldTokens
from adept_fast.engine.speculation import PromptLookup
from adept_fast.engine.stopping import StopMatcher
from adept_fast.model import Segment
from adept_fast.ops import INVALID
from adept_fast.sampling import SamplingParams
from adept_fast.system.short_text import short_repr
from adept_fast.tokenizer.tokenizer import StreamingDetokenizer, Tokenizer


class GenerationError(ValueError):
    """A text cannot go on, as its logits hold a NaN or an infinity."""


FinishReason = Literal["stop", "length", "eos", "interrupted", "timeout"]


@dataclass(frozen=True)
class TokenLogprob:
    """The log-probability of a generated token, and the likeliest tokens at its position, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Timings:
    """Seconds of wall-clock time. The first token comes from the prefill, the others from decode steps."""

    load_seconds: float
    prefill_seconds: float
    decode_seconds: float
    prompt_tokens: int
    decode_tokens: int
    decode_steps: int  # fewer than tokens if drafted tokens were kept
    drafted_tokens: int = 0  # by prompt lookup
    accepted_tokens: int = 0  # drafted tokens that were kept
    cached_tokens: int = 0  # of the prompt, whose keys and values were in the cache already

    @property
    def tokens_per_second(self) -> float:
        """Tokens after the first, per second; 0 if there are none."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds > 0 else 0.0


@dataclass(frozen=True)
class Generation:
    """The result of a request.

    ``text`` begins exactly where the prompt ends, usually with a space. ``finish_reason``: ``eos`` the model
    ended the text, ``stop`` a stop string or stop token did, ``length`` max_new_tokens or the context was
    reached, ``interrupted`` Ctrl-C or a cancellation ended it, ``timeout`` its deadline. ``token_ids`` is
    without the token that ended the text. ``logprobs`` has an entry for each of ``token_ids``, and
    ``prompt_logprobs`` one for each token of the prompt, None for the first; each is None if not requested.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[TokenLogprob] | None
    timings: Timings
    prompt_logprobs: list[TokenLogprob | None] | None = None


@dataclass(frozen=True)
class Request:
    """A prompt, at least one token, and how it is continued.

    Args:
        deadline: the time, as ``time.monotonic()`` has it, at which the request ends unfinished.
        prompt_logprobs: None for none; n for the log-probability of each token of the prompt, as
            ``Runtime.score`` computes it, and of the n most likely ones at its position. The prompt is then
            read whole, whatever the cache holds.
        cache_scope: keys and values are reused among requests of one scope only.
    """

    prompt_ids: list[int]
    params: SamplingParams
    deadline: float | None = None
    prompt_logprobs: int | None = None
    cache_scope: str = ""


def check_prompt(ids: SequenceOf[int], vocab_size: int, max_seq_len: int) -> None:
    """Raises ParameterError for ids that are not in the vocabulary, or more than the cache holds."""
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            raise ParameterError(
                f"prompt has the token id {short_repr(token_id)}; expected 0 to {vocab_size - 1}"
            )
    if len(ids) > max_seq_len:
        raise ParameterError(f"prompt has {len(ids)} tokens; expected at most max_seq_len {max_seq_len}")


@dataclass(frozen=True)
class GenerationEvent:
    """The tokens and the text of one step.

    ``text`` is the part that became certain: bytes of a character, or the beginning of a stop string, are
    held back. ``logprobs`` has an entry for each token, or is None if not requested. ``finish_reason`` is
    None in all events but the last.
    """

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] | None
    finish_reason: FinishReason | None


class Sequence:
    """The running state of a request: its slot, its tokens and text so far, and the events not read yet.

    Args:
        context_room: how many tokens may be generated before the context is full.
        decoded_is_reusable: others may reuse the keys and values of generated tokens, too. Where decode steps
            and prefill differ in their order of additions, only those of the prompt have a prefill's bits.
    """

    def __init__(
        self, request: Request, tokenizer: Tokenizer, context_room: int, *, decoded_is_reusable: bool = False
    ) -> None:
        self.prompt_ids, self.params = request.prompt_ids, request.params
        self.deadline, self.prompt_logprobs = request.deadline, request.prompt_logprobs
        self._cache_scope = request.cache_scope
        self._decoded_is_reusable = decoded_is_reusable
        self.slot = -1
        self.is_cancelled = False
        self.thread = threading.get_ident()
        self.error: Exception | None = None
        self.finish_reason: FinishReason | None = None
        self.text = ""
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.events: deque[GenerationEvent] = deque()
        self.drafted_tokens = self.accepted_tokens = 0
        self._tokenizer = tokenizer
        self._prefilled = 0  # tokens of the prompt that the cache holds
        self._cached = 0  # of these, tokens that it held before
        self._prompt_entries: list[TokenLogprob | None] = [None]  # of the tokens predicted so far
        self._published = 0  # tokens that are in events
        self._steps = 0
        self._chosen = 0  # tokens, the one that ended the text included
        self._started_at = self._first_token_at = self._ended_at = 0.0
        self._derive_text()
        limit = self.params.max_new_tokens
        self._max_tokens = context_room if limit is None else min(limit, context_room)
        if self._max_tokens == 0 and self.prompt_logprobs is None:
            self._end("length")

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    @property
    def next_position(self) -> int:
        """The position of the next token."""
        return len(self.prompt_ids) + len(self.token_ids)

    @property
    def room(self) -> int:
        """How many more tokens may be generated."""
        return self._max_tokens - len(self.token_ids)

    @property
    def last_position(self) -> int:
        """The position of the last token that may be generated."""
        return len(self.prompt_ids) + self._max_tokens - 1

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end the text."""
        eos_ids = () if self.params.ignore_eos else self._tokenizer.eos_ids
        return (*self.params.stop_token_ids, *eos_ids)

    @property
    def ids(self) -> list[int]:
        """The prompt and the tokens so far."""
        return self.prompt_ids + self.token_ids

    def begin(self, slot: int) -> None:
        """Take a slot."""
        self.slot = slot
        self._started_at = self._first_token_at = self._ended_at = time.perf_counter()

    def wanted(self) -> HeldTokens:
        """The first tokens of the prompt; the last one is read for its logits."""
        ids = [] if self.token_ids or self.prompt_logprobs is not None else self.prompt_ids[:-1]
        return HeldTokens(ids, self._cache_scope)

    def reuse(self, count: int) -> None:
        """Record that the first ``count`` tokens are in the cache, and need not be prefilled."""
        self._cached += count - self._prefilled
        self._prefilled = count

    def held(self) -> HeldTokens:
        """The tokens that were read; none if something in the cache may be no number."""
        ids = [] if self.error is not None else self.prompt_ids[: self._prefilled]
        if ids and self._decoded_is_reusable:
            ids += self.token_ids[: max(0, self._chosen - 1)]  # the last one chosen is not read yet
        return HeldTokens(ids, self._cache_scope)

    def unread(self) -> Segment:
        """The tokens of the prompt that were not prefilled yet."""
        return Segment(self.slot, self._prefilled, self.prompt_ids[self._prefilled :])

    def prefilled(self, count: int) -> None:
        """Record that ``count`` more tokens of the prompt are in the cache."""
        self._prefilled += count
        if self.room == 0 and self._prefilled == len(self.prompt_ids):  # only the prompt was to be scored
            self._end("length")

    def add_prompt_logprobs(self, entries: Iterable[TokenLogprob]) -> None:
        """Add the log-probabilities of the prompt's next tokens."""
        self._prompt_entries += entries

    def resume(self) -> None:
        """Make the state consistent with the tokens so far, after a step that was cut short."""
        self._prefilled = len(self.prompt_ids) if self.token_ids else 0
        if not self.token_ids:
            self._cached, self._prompt_entries = 0, [None]
        if not self.is_finished:
            self._chosen = len(self.token_ids)
        del self.logprobs[len(self.token_ids) :]
        self._derive_text()
        if not self.is_finished and (self.room == 0 or self._stops.stopped):
            self._end("length")

    def draft(self, max_tokens: int) -> list[int]:
        """Tokens that may come next, at most ``max_tokens`` and as many as the parameters allow."""
        if self._lookup is None:
            return []
        # The step's own token needs room too.
        count = min(max_tokens, self.params.prompt_lookup, self.room - 1)
        return self._lookup.draft(count) if count > 0 else []

    def accept_step(self, tokens: list[int], logprobs: list[TokenLogprob | None], drafted: int) -> None:
        """Add the tokens of a decode step, all but the first of which are among its ``drafted`` ones."""
        before = self._chosen
        self.accept(tokens, logprobs)
        self._steps += 1
        self.drafted_tokens += drafted
        self.accepted_tokens += max(0, self._chosen - before - 1)

    def accept(self, tokens: list[int], logprobs: list[TokenLogprob | None]) -> None:
        """Add tokens up to the end of the text, and publish an event.

        Sets ``finish_reason`` at the end, or ``error`` if the logits were no distribution.
        """
        for token_id, logprob in zip(tokens, logprobs, strict=True):
            if token_id == INVALID:
                self.error = GenerationError(
                    f"the logits after {self.next_position} tokens hold a NaN or an infinity: "
                    f"weights are damaged, or the cache's dtype is too narrow for them"
                )
                return
            self._ended_at = time.perf_counter()
            self._chosen += 1
            if not self.token_ids:
                self._first_token_at = self._ended_at
            if (reason := self._add(token_id, logprob)) is not None:
                self._end(reason)
                return
        self._publish(None)

    def interrupt(self) -> None:
        """End the text here."""
        if not self.is_finished:
            self._end("interrupted")

    def expire(self) -> None:
        """End the text here, at its deadline."""
        if not self.is_finished:
            self._end("timeout")

    def generation(self, load_seconds: float) -> Generation:
        """The result so far."""
        timings = Timings(
            load_seconds=load_seconds,
            prefill_seconds=self._first_token_at - self._started_at,
            decode_seconds=self._ended_at - self._first_token_at,
            prompt_tokens=len(self.prompt_ids),
            decode_tokens=max(0, self._chosen - 1),
            decode_steps=self._steps,
            drafted_tokens=self.drafted_tokens,
            accepted_tokens=self.accepted_tokens,
            cached_tokens=self._cached,
        )
        return Generation(
            text=self.text,
            token_ids=self.token_ids,
            finish_reason=self.finish_reason or "interrupted",
            logprobs=None if self.params.logprobs is None else self.logprobs,
            timings=timings,
            prompt_logprobs=None if self.prompt_logprobs is None else self._prompt_entries,
        )

    def _derive_text(self) -> None:
        """Set what follows from the tokens so far."""
        # The text goes on where the prompt ends, so its leading space counts, unlike that of a new text.
        self._detokenizer = StreamingDetokenizer(self._tokenizer)
        self._detokenizer.skip(self.prompt_ids)
        self._stops = StopMatcher(self.params.stop)
        self._lookup = PromptLookup(self.ids) if self.params.prompt_lookup else None
        certain = "".join(self._stops.push(self._detokenizer.push(token_id)) for token_id in self.token_ids)
        self._piece = certain[len(self.text) :]  # text of the next event

    def _add(self, token_id: int, logprob: TokenLogprob | None) -> FinishReason | None:
        """Add one token; returns why the text ends with it, or None."""
        if token_id in self._tokenizer.eos_ids and not self.params.ignore_eos:
            return "eos"
        if token_id in self.params.stop_token_ids:
            return "stop"
        if logprob is not None:
            self.logprobs.append(logprob)
        self.token_ids.append(token_id)
        if self._lookup is not None:
            self._lookup.push(token_id)
        self._piece += self._stops.push(self._detokenizer.push(token_id))
        if self._stops.stopped:
            return "stop"
        return "length" if self.room == 0 else None

    def _end(self, reason: FinishReason) -> None:
        """End the text. What was held back may still complete a stop string."""
        self._piece += self._stops.push(self._detokenizer.finish())
        reason = "stop" if self._stops.stopped else reason
        self._piece += self._stops.finish()
        self._publish(reason)

    def _publish(self, reason: FinishReason | None) -> None:
        """Make an event of the tokens and the text since the last one."""
        token_ids = tuple(self.token_ids[self._published :])
        logprobs = None if self.params.logprobs is None else tuple(self.logprobs[self._published :])
        event = GenerationEvent(token_ids, self._piece, logprobs, reason)
        self._published = len(self.token_ids)
        self.text, self._piece = self.text + self._piece, ""
        self.events.append(event)
        self.finish_reason = reason  # last, so that a reader in another thread misses no event

"""One prompt on its way: what it has generated, when it ends, and what comes of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

from adept_fast.engine.speculation import PromptLookup
from adept_fast.engine.stopping import StopMatcher
from adept_fast.ops import INVALID
from adept_fast.sampling import SamplingParams
from adept_fast.tokenizer.tokenizer import StreamingDetokenizer, Tokenizer


class GenerationError(ValueError):
    """A text cannot go on: its logits hold a NaN or an infinity, or its place in the cache was given away."""


FinishReason = Literal["stop", "length", "eos", "interrupted"]


@dataclass(frozen=True)
class TokenLogprob:
    """The log-probability of a generated token, and the most likely tokens at its place, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Timings:
    """Seconds on the wall clock. The first token comes from the prefill, further ones from steps."""

    load_seconds: float
    prefill_seconds: float
    decode_seconds: float
    prompt_tokens: int
    decode_tokens: int
    decode_steps: int  # fewer than tokens where guesses were kept
    drafted_tokens: int = 0  # guessed by prompt lookup, and of those
    accepted_tokens: int = 0  # kept

    @property
    def tokens_per_second(self) -> float:
        """Tokens after the first a second; 0 where there was none."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds > 0 else 0.0


@dataclass(frozen=True)
class Generation:
    """What came of a prompt.

    ``text`` goes on exactly where the prompt ends, most often with a space.
    ``finish_reason``: ``eos`` the model ended the text, ``stop`` a stop string or stop token did, ``length``
    max_new_tokens or the context was reached, ``interrupted`` Ctrl-C. ``token_ids`` does not hold the token
    that ended the text. ``logprobs`` has an entry for each of ``token_ids``, or is None if not asked for.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[TokenLogprob] | None
    timings: Timings


@dataclass
class Sequence:
    """A prompt, its settings, and its state.

    ``context_room`` is how many tokens may be generated before the context is full.
    """

    prompt_ids: list[int]
    params: SamplingParams
    tokenizer: Tokenizer
    context_room: int
    slot: int = -1
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    started_at: float = 0.0
    first_token_at: float = 0.0
    ended_at: float = 0.0
    decode_steps: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    def __post_init__(self) -> None:
        # The text goes on where the prompt ends, so its leading space counts, unlike that of a new text.
        self._detokenizer = StreamingDetokenizer(self.tokenizer)
        self._detokenizer.extend(self.prompt_ids)
        self._stops = StopMatcher(self.params.stop)
        self._chosen = 0  # tokens, the one that ended the text too
        self._lookup = PromptLookup(self.prompt_ids) if self.params.prompt_lookup else None
        limit = self.params.max_new_tokens
        self._room = self.context_room if limit is None else min(limit, self.context_room)
        if self._room == 0:
            self.finish_reason = "length"

    @property
    def next_position(self) -> int:
        """Where the next token will stand."""
        return len(self.prompt_ids) + len(self.token_ids)

    @property
    def room(self) -> int:
        """How many tokens may still come."""
        return self._room - len(self.token_ids)

    @property
    def last_position(self) -> int:
        """Where its last token would stand."""
        return len(self.prompt_ids) + self._room - 1

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end the text."""
        eos_ids = () if self.params.ignore_eos else self.tokenizer.eos_ids
        return (*self.params.stop_token_ids, *eos_ids)

    def begin(self, slot: int) -> None:
        self.slot = slot
        self.started_at = self.first_token_at = self.ended_at = time.perf_counter()

    def draft(self, most: int) -> list[int]:
        """Tokens that may come next, at most ``most`` and as many as the parameters say."""
        if self._lookup is None:
            return []
        # The step's own token takes a place too.
        count = min(most, self.params.prompt_lookup, self.room - 1)
        return self._lookup.draft(count) if count > 0 else []

    def accept_step(self, kept: list[int], logprobs: list[TokenLogprob | None], drafted: int) -> str:
        """Take the tokens that a step chose, of which all but the first had been guessed, among ``drafted``.

        Returns the text that is now certain.
        """
        self.decode_steps += 1
        self.drafted_tokens += drafted
        piece = self.accept(kept[0], logprobs[0])
        for token_id, logprob in zip(kept[1:], logprobs[1:], strict=True):
            if self.finish_reason is not None:
                break
            self.accepted_tokens += 1
            piece += self.accept(token_id, logprob)
        return piece

    def accept(self, token_id: int, logprob: TokenLogprob | None) -> str:
        """Take the next token; returns the text that is now certain. Sets ``finish_reason`` at the end.

        Raises GenerationError where there is none, as the logits were no distribution.
        """
        if token_id == INVALID:
            raise GenerationError(
                f"the logits after {self.next_position} tokens hold a NaN or an infinity: "
                f"weights are damaged, or the cache's dtype is too narrow for them"
            )
        self.ended_at = time.perf_counter()
        self._chosen += 1
        if not self.token_ids:
            self.first_token_at = self.ended_at
        if token_id in self.tokenizer.eos_ids and not self.params.ignore_eos:
            return self._finish("eos")
        if token_id in self.params.stop_token_ids:
            return self._finish("stop")
        self.token_ids.append(token_id)
        if self._lookup is not None:
            self._lookup.push(token_id)
        if logprob is not None:
            self.logprobs.append(logprob)
        piece = self._stops.push(self._detokenizer.push(token_id))
        self.text += piece
        if self._stops.stopped:
            self.finish_reason = "stop"
        elif self.room == 0:
            piece += self._finish("length")
        return piece

    def interrupt(self) -> str:
        """End here, with what there is."""
        return self._finish("interrupted")

    def generation(self, load_seconds: float) -> Generation:
        timings = Timings(
            load_seconds=load_seconds,
            prefill_seconds=self.first_token_at - self.started_at,
            decode_seconds=self.ended_at - self.first_token_at,
            prompt_tokens=len(self.prompt_ids),
            decode_tokens=max(0, self._chosen - 1),
            decode_steps=self.decode_steps,
            drafted_tokens=self.drafted_tokens,
            accepted_tokens=self.accepted_tokens,
        )
        return Generation(
            text=self.text,
            token_ids=self.token_ids,
            finish_reason=self.finish_reason or "interrupted",
            logprobs=None if self.params.logprobs is None else self.logprobs,
            timings=timings,
        )

    def _finish(self, reason: FinishReason) -> str:
        """The rest of the text, in which a stop string may still come to light."""
        rest = self._stops.push(self._detokenizer.finish())
        self.finish_reason = "stop" if self._stops.stopped else reason
        rest += self._stops.finish()
        self.text += rest
        return rest

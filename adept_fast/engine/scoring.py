"""Log-probabilities: of the tokens of a given text, and of tokens that were just sampled."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adept_fast import ops
from adept_fast.engine.prefix_cache import HeldTokens
from adept_fast.engine.sequence import TokenLogprob
from adept_fast.memory.workspace import SCORED_ROWS
from adept_fast.model import Segment
from adept_fast.ops.transfer import Arriving, to_device


@dataclass(frozen=True)
class Score:
    """``logprobs[i]`` is the natural logarithm of the probability of ``token_ids[i]`` after the tokens before
    it; None for the first token, which nothing precedes.

    On a CPU the probability is among all rows of the vocabulary, as in transformers. On a GPU the rows for
    which the tokenizer has no piece are not loaded, and it is among the others: larger by −log(1 − p), where
    p is the probability of all unused rows together.
    """

    token_ids: list[int]
    logprobs: list[float | None]

    @property
    def total(self) -> float:
        """The log-probability of the text after its first token."""
        return math.fsum(value for value in self.logprobs if value is not None)

    @property
    def perplexity(self) -> float:
        """NaN for a text with nothing to predict, and infinity above the largest float."""
        scored = sum(value is not None for value in self.logprobs)
        if not scored:
            return math.nan
        try:
            return math.exp(-self.total / scored)
        except OverflowError:
            return math.inf


@dataclass(frozen=True)
class Likelihood:
    """The log-probabilities of a continuation's tokens, among the same rows as in ``Score``.

    ``is_greedy``: each of its tokens is the likeliest one at its position.
    """

    logprobs: list[float]
    is_greedy: bool

    @property
    def total(self) -> float:
        """The natural logarithm of the continuation's probability."""
        return math.fsum(self.logprobs)


@dataclass(frozen=True)
class Target:
    """A token whose log-probability is wanted, and the hidden state that predicts it."""

    row: int  # of a chunk's hidden states
    token_id: int
    continuation: int
    index: int  # of the token in its continuation


class ScoredSequence:
    """Continuations that follow one context, at least one token long, and their log-probabilities so far.

    The context is read once, with the first continuation after it. Each further continuation is read over the
    one before it. The last token of a continuation is not read, as nothing follows it.
    """

    def __init__(self, context: Sequence[int], continuations: Sequence[Sequence[int]]) -> None:
        self.slot = -1
        self.is_cancelled = False
        self.thread = threading.get_ident()
        self.deadline: float | None = None
        self.error: Exception | None = None
        self._context, self._continuations = list(context), continuations
        self._logprobs = [[math.nan] * len(ids) for ids in continuations]
        self._greedy = [True] * len(continuations)
        self._current = 0  # the continuation that is read
        self._read = 0  # tokens of the current segment
        self._is_interrupted = False
        # A text of one token has nothing to predict.
        self._is_done = not any(continuations)

    @property
    def is_finished(self) -> bool:
        return self._is_done or self._is_interrupted or self.error is not None

    def begin(self, slot: int) -> None:
        self.slot = slot

    def wanted(self) -> HeldTokens:
        """None: the hidden state of every token is needed."""
        return HeldTokens([])

    def reuse(self, count: int) -> None:
        self._read += count

    def held(self) -> HeldTokens:
        """None: scored texts seldom come again."""
        return HeldTokens([])

    def interrupt(self) -> None:
        self._is_interrupted = True

    def expire(self) -> None:
        self.interrupt()

    def likelihoods(self) -> list[Likelihood]:
        """One for each continuation."""
        return [Likelihood(*found) for found in zip(self._logprobs, self._greedy, strict=True)]

    def unread(self) -> Segment:
        """The unread tokens of the current continuation, preceded by those of the context."""
        tokens, start = self._segment()
        return Segment(self.slot, start + self._read, tokens[self._read :])

    def targets(self, first_row: int, count: int) -> list[Target]:
        """The tokens that the next ``count`` tokens predict; ``first_row`` is the row of the first."""
        _, start = self._segment()
        found = []
        for at in range(count):
            position = start + self._read + at
            after = position + 1 - len(self._context)  # tokens of the continuation up to the predicted one
            row = first_row + at
            if after == 0:
                found += [
                    Target(row, ids[0], at, 0) for at, ids in enumerate(self._continuations) if len(ids)
                ]
            elif after > 0:
                token_id = self._continuations[self._current][after]
                found.append(Target(row, token_id, self._current, after))
        return found

    def add(self, target: Target, logprob: float, is_likeliest: bool) -> None:
        """Record the result of a target."""
        self._logprobs[target.continuation][target.index] = logprob
        self._greedy[target.continuation] &= is_likeliest

    def prefilled(self, count: int) -> None:
        """Record that ``count`` more tokens were read and their targets added."""
        self._read += count
        while self._read == len(self._segment()[0]):
            self._current, self._read = self._current + 1, 0
            if self._current == len(self._continuations):
                self._is_done = True
                return

    def _segment(self) -> tuple[list[int], int]:
        """The tokens to read for the current continuation, and the position of the first."""
        ids = list(self._continuations[self._current][:-1]) if not self._is_done else []
        return (self._context + ids, 0) if self._current == 0 else (ids, len(self._context))


AllLogits = Callable[[Tensor], Tensor]  # ``all_logits`` of a ModelRunner


def score_targets(all_logits: AllLogits, hidden: Tensor, targets: Sequence[Target]) -> tuple[Tensor, Tensor]:
    """The log-probability of each target, and whether it is the likeliest token: each [targets].

    Args:
        hidden: float32 [tokens, hidden], of a chunk.
    """
    rows, ids = to_device([[t.row for t in targets], [t.token_id for t in targets]], hidden.device)
    logprobs, likeliest = [], []
    for some_rows, some_ids in zip(rows.split(SCORED_ROWS), ids.split(SCORED_ROWS), strict=True):
        # The logits get no name, so that they are freed before the next ones are computed.
        scores = all_logits(hidden[some_rows]).log_softmax(-1)  # [rows, vocab]
        logprobs.append(scores.gather(-1, some_ids[:, None])[:, 0])
        likeliest.append(scores.argmax(-1) == some_ids)
        del scores
    return torch.cat(logprobs), torch.cat(likeliest)


def prompt_logprobs(
    all_logits: AllLogits, hidden: Tensor, ids: Sequence[int], count: int
) -> list[TokenLogprob]:
    """The log-probability of each id and of the ``count`` likeliest ones in its place, as ``score_targets``
    computes it; waits.

    Args:
        hidden: float32 [ids, hidden], which predict them.
    """
    entries = []
    (predicted,) = to_device([ids], hidden.device)  # [ids]
    for some, states in zip(predicted.split(SCORED_ROWS), hidden.split(SCORED_ROWS), strict=True):
        found = TokenLogprobs(all_logits(states), some, count)
        entries += [found.of(row, count) for row in range(len(some))]
    return entries


class TokenLogprobs:
    """Log-probabilities of sampled tokens and of the likeliest ones, on their way to the host."""

    def __init__(self, logits: Tensor, ids: Tensor, max_top: int) -> None:
        """Of ids, int64 [rows], and of the ``max_top`` likeliest tokens; logits are float32 [rows, vocab]."""
        self._found = Arriving(ops.token_logprobs(logits, ids, min(max_top, logits.shape[-1])))

    @functools.cached_property
    def _rows(self) -> list[TokenLogprob]:
        rows = []
        for ids, logprobs in self._found.take().tolist():  # each [1 + max_top]
            (token_id, logprob), *top = zip(map(int, ids), logprobs, strict=True)
            rows.append(TokenLogprob(token_id, logprob, tuple(top)))
        return rows

    def of(self, row: int, count: int) -> TokenLogprob:
        """Of one row: its token's, and those of the ``count`` likeliest."""
        entry = self._rows[row]
        return TokenLogprob(entry.token_id, entry.logprob, entry.top[:count])

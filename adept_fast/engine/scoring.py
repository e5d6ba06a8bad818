"""Log-probabilities: of every token of a given text, and of tokens that were just chosen."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from adept_fast.engine.sequence import TokenLogprob
from adept_fast.kv_cache import StaticKVCache
from adept_fast.memory.workspace import SCORED_ROWS
from adept_fast.model import Persimmon


@dataclass(frozen=True)
class Score:
    """``logprobs[i]`` is the natural logarithm of the probability of ``token_ids[i]`` after the tokens before
    it; None for the first token, which nothing precedes.

    On a CPU that is among all rows of the vocabulary, as in transformers. On a GPU the rows that the
    tokenizer has no piece for are not held, and it is among the others: larger by −log(1 − p), where p is
    what all unused rows together would get.
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


@torch.inference_mode()
def score_sequence(model: Persimmon, cache: StaticKVCache, ids: list[int]) -> Score:
    """Score one sequence, in slot 0 of the cache."""
    if not ids:
        return Score([], [])
    tokens = torch.tensor(ids, device=model.device, dtype=torch.int64)  # [tokens]
    logprobs: list[float | None] = [None]
    for chunk in model.prefill_chunks(tokens, cache, slot=0):
        for hidden in chunk.split(SCORED_ROWS):
            targets = tokens[len(logprobs) :][: len(hidden)]  # [rows]; the last hidden state has none
            # No name holds the logits, or the next ones would lie beside them.
            logprobs += _of_targets(model.all_logits(hidden[: len(targets)]), targets).tolist()
    return Score(ids, logprobs)


def _of_targets(logits: Tensor, targets: Tensor) -> Tensor:
    """The log-probability of one token of each row of logits, float32 [rows, vocab]: → float32 [rows]."""
    return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]


class TokenLogprobs:
    """The log-probabilities of chosen tokens and of the most likely ones: worked out on the device at once,
    and fetched from it when the first is asked for."""

    def __init__(self, logits: Tensor, ids: Tensor, most: int) -> None:
        """Of the token in ids, int64 [rows], and of the ``most`` best, in logits, float32 [rows, vocab]."""
        logprobs = logits.log_softmax(-1)
        values, indices = logprobs.topk(min(most, logprobs.shape[-1]))  # each [rows, most]
        chosen = logprobs.gather(-1, ids.clamp(min=0)[:, None])  # [rows, 1]
        self._on_device = (ids.clone(), chosen, indices, values)

    @functools.cached_property
    def _rows(self) -> list[TokenLogprob]:
        return [
            TokenLogprob(token_id, logprob, tuple(zip(best, logprobs, strict=True)))
            for token_id, (logprob,), best, logprobs in zip(
                *(tensor.tolist() for tensor in self._on_device), strict=True
            )
        ]

    def of(self, row: int, count: int) -> TokenLogprob:
        """Of one row: its token's, and those of the ``count`` best."""
        entry = self._rows[row]
        return TokenLogprob(entry.token_id, entry.logprob, entry.top[:count])

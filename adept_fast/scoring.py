"""Log-probabilities: of every token of a given text, and of tokens that were just chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from adept_fast.kv_cache import StaticKVCache
from adept_fast.model import Persimmon
from adept_fast.sequence import TokenLogprob

_ROWS = 64  # logits are made for this many tokens at once: a row of the 8B's takes a megabyte


@dataclass(frozen=True)
class Score:
    """``logprobs[i]`` is the natural logarithm of the probability of ``token_ids[i]`` after the tokens before
    it, among all rows of the vocabulary; None for the first token, which nothing precedes."""

    token_ids: list[int]
    logprobs: list[float | None]

    @property
    def total(self) -> float:
        """The log-probability of the text after its first token."""
        return math.fsum(value for value in self.logprobs if value is not None)

    @property
    def perplexity(self) -> float:
        """NaN for a text with nothing to predict."""
        scored = sum(value is not None for value in self.logprobs)
        return math.exp(-self.total / scored) if scored else math.nan


@torch.inference_mode()
def score_sequence(model: Persimmon, cache: StaticKVCache, ids: list[int]) -> Score:
    """Score one sequence, in slot 0 of the cache."""
    if not ids:
        return Score([], [])
    tokens = torch.tensor(ids, device=model.device)  # [tokens]
    logprobs: list[float | None] = [None]
    for chunk in model.prefill_chunks(tokens, cache, slot=0):
        for hidden in chunk.split(_ROWS):
            targets = tokens[len(logprobs) :][: len(hidden)]  # [rows]; the last hidden state has none
            row_logprobs = model.all_logits(hidden[: len(targets)]).log_softmax(-1)  # [rows, vocab]
            logprobs += row_logprobs.gather(-1, targets[:, None])[:, 0].tolist()
    return Score(ids, logprobs)


def token_logprobs(logits: Tensor, ids: Tensor, asked: list[int | None]) -> list[TokenLogprob | None]:
    """What each row asked for: None, or the chosen token's log-probability and those of the n best."""
    most = max((count for count in asked if count is not None), default=None)
    if most is None:
        return [None] * len(asked)
    logprobs = logits.log_softmax(-1)  # [rows, vocab]
    chosen = logprobs.gather(-1, ids[:, None])[:, 0].tolist()
    values, indices = (best.tolist() for best in logprobs.topk(min(most, logprobs.shape[-1])))
    return [
        None
        if count is None
        else TokenLogprob(token_id, chosen[row], tuple(zip(indices[row], values[row], strict=True))[:count])
        for row, (token_id, count) in enumerate(zip(ids.tolist(), asked, strict=True))
    ]

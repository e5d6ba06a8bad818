"""The next token, in float64 and plain numpy: what every implementation of sampling is held to."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adept_fast.sampling import SamplingParams

Row = NDArray[np.float64]  # [vocab]

BORDER = 1e-6  # a draw that is nearer than this to the next token may give that one too


@dataclass(frozen=True)
class History:
    """The tokens before the next one."""

    prompt: tuple[int, ...] = ()
    generated: tuple[int, ...] = ()


def adjusted(logits: Row, params: SamplingParams, history: History) -> Row:
    """With the bias and the penalties, one token after the other."""
    found = [float(value) for value in logits]
    bias = dict(params.logit_bias)
    for token_id in range(len(found)):
        value = found[token_id] + bias.get(token_id, 0.0)
        if token_id in history.prompt or token_id in history.generated:
            factor = params.repetition_penalty
            value = value / factor if value > 0 else value * factor
        count = history.generated.count(token_id)
        value -= params.frequency_penalty * count
        if count > 0:
            value -= params.presence_penalty
        found[token_id] = value
    return np.array(found)


def probabilities(values: Row, params: SamplingParams) -> Row:
    """Of each token, from the adjusted logits, at a temperature above 0."""
    scaled = values / params.temperature
    weights = np.exp(scaled - scaled.max())
    order = sorted(range(len(weights)), key=lambda token_id: -scaled[token_id])  # of equals the smaller id
    order = order[: params.top_k or len(order)]
    whole, mass, kept = math.fsum(weights[order]), 0.0, []
    for token_id in order:
        if kept and mass >= params.top_p * whole:
            break
        kept.append(token_id)
        mass += weights[token_id]
    kept = [token_id for token_id in kept if weights[token_id] >= params.min_p]
    found = np.zeros(len(weights))
    found[kept] = weights[kept] / math.fsum(weights[kept])
    return found


def random_number(seed: int, position: int) -> float:
    """SplitMix64's output in [0, 1)."""
    mask, golden = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    return (mix((mix((seed + golden) & mask) + position * golden) & mask) >> 11) / 2**53


def next_tokens(logits: Row, params: SamplingParams, history: History, position: int) -> set[int]:
    """The token at a position, after the history; two where rounding decides between them."""
    values = adjusted(logits, params, history)
    if params.temperature == 0:
        best = values.max()
        tied = np.flatnonzero(values >= best - 1e-5 * max(abs(best), 1.0))
        exact = int(values.argmax())
        # Equal values have equal float32 twins; values that only float64 tells apart may not.
        return {exact} if (values[tied] == best).all() else set(tied.tolist())
    assert params.seed is not None
    drawn = random_number(params.seed, position)
    ends = np.cumsum(probabilities(values, params))
    begins = np.concatenate([[0.0], ends[:-1]])
    possible = (begins - BORDER <= drawn) & (drawn < ends + BORDER) & (ends > begins)
    return set(np.flatnonzero(possible).tolist())

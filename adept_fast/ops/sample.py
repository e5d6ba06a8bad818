"""Sampling of the next token on the device, with a counter-based random number generator.

A draw depends only on the row's logits and settings, its seed and its position: not on the batch or
earlier draws. So a prompt gets the same tokens alone and in a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

INVALID = -1  # the result of a row whose logits contain a NaN or +infinity, or only -infinity

# The 64-bit constants of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), as signed integers.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def sample(
    logits: Tensor,
    *,
    temperature: Tensor | None = None,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
    min_p: Tensor | None = None,
    repetition_penalty: Tensor | None = None,
    seen: Tensor | None = None,
    frequency_penalty: Tensor | None = None,
    presence_penalty: Tensor | None = None,
    counts: Tensor | None = None,
    logit_bias: Tensor | None = None,
    seed: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """The next token of each row: → int64 [rows], ``INVALID`` if the logits are no distribution.

    A setting that is None is off for every row. They apply in this order: bias, repetition, frequency and
    presence penalty, temperature, top-k, top-p and min-p, each to the result of the one before.

    Args:
        logits: float32 [rows, vocab].
        temperature: float32 [rows], 0 for the most likely token; None is 0 for all.
        top_k: int64 [rows], how many of the most likely tokens to keep, 0 for all.
        top_p: float32 [rows] in [0, 1], the fewest most likely tokens that reach this probability, or one.
        min_p: float32 [rows] in [0, 1), keep tokens with at least this share of the largest probability.
        repetition_penalty: float32 [rows]; a seen token's logit is divided by it if positive, else multiplied
            (CTRL, Keskar et al. 2019).
        seen: bool [rows, vocab], the tokens that it applies to.
        frequency_penalty: float32 [rows], subtracted from a logit as often as its token was counted.
        presence_penalty: float32 [rows], subtracted once from the logits of counted tokens.
        counts: int32 [rows, vocab], of each token in the generated text; both penalties take them.
        logit_bias: float32 [rows, vocab], added to the logits.
        seed, positions: int64 [rows], from which the random number is computed.
    """
    largest, chosen = logits.max(-1)  # each [rows]; NaN for a row with a NaN
    valid = largest.isfinite()
    if logit_bias is not None:
        logits = logits + logit_bias
    if repetition_penalty is not None and seen is not None:
        penalty = repetition_penalty[:, None]
        penalised = torch.where(logits > 0, logits / penalty, logits * penalty)
        logits = torch.where(seen, penalised, logits)
    if counts is not None:
        for subtracted, times in ((frequency_penalty, counts), (presence_penalty, counts > 0)):
            if subtracted is not None:
                logits = logits - subtracted[:, None] * times
    if any(given is not None for given in (logit_bias, seen, counts)):
        chosen = logits.argmax(-1)
    if temperature is not None:
        if seed is None or positions is None:
            raise ValueError("sampling at a temperature takes seed and positions")
        # Greedy rows do not use the result; 1 keeps it finite.
        divisor = torch.where(temperature > 0, temperature, 1.0)[:, None]
        scaled = logits / divisor
        drawn = _draw(_keep_likely(scaled, top_k, top_p, min_p), uniform(seed, positions))
        # A logit that overflows in a penalty or the temperature is the only likely one.
        is_drawn = (temperature > 0) & scaled.amax(-1).isfinite()
        chosen = torch.where(is_drawn, drawn, chosen)
    return torch.where(valid, chosen, INVALID)


def uniform(seed: Tensor, counter: Tensor) -> Tensor:
    """A float64 in [0, 1) for each pair of int64, by SplitMix64's output function."""
    state = _mix(seed + _GOLDEN) + counter * _GOLDEN
    return _shift_right(_mix(state), 11).double() * 2.0**-53


def _keep_likely(logits: Tensor, top_k: Tensor | None, top_p: Tensor | None, min_p: Tensor | None) -> Tensor:
    """Probabilities, float64 [rows, vocab], 0 for tokens that a setting excludes; not scaled to 1."""
    probabilities = logits.softmax(-1, dtype=torch.float64)
    if min_p is not None:
        minimum = min_p[:, None].double() * probabilities.amax(-1, keepdim=True)
    if top_k is not None or top_p is not None:
        # Sorted by logits: at a high temperature, float64 cannot tell the probabilities apart.
        _, indices = logits.sort(dim=-1, descending=True, stable=True)
        ordered = probabilities.gather(-1, indices)
        rank = torch.arange(ordered.shape[-1], device=ordered.device)
        if top_k is not None:
            limit = torch.where(top_k > 0, top_k, ordered.shape[-1])[:, None]
            ordered = ordered.masked_fill(rank >= limit, 0)
        if top_p is not None:
            mass_before = ordered.cumsum(-1) - ordered
            enough = (mass_before >= top_p[:, None].double() * ordered.sum(-1, keepdim=True)) & (rank > 0)
            ordered = ordered.masked_fill(enough & (top_p < 1)[:, None], 0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, indices, ordered)
    if min_p is not None:
        probabilities = probabilities.masked_fill(probabilities < minimum, 0)
    return probabilities


def _draw(probabilities: Tensor, at: Tensor) -> Tensor:
    """The first id whose cumulated probability exceeds the share ``at`` of the total: int64 [rows]."""
    cumulated = probabilities.cumsum(-1)
    target = (at * cumulated[:, -1])[:, None]
    return torch.searchsorted(cumulated, target, right=True)[:, 0].clamp(max=probabilities.shape[-1] - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Shift as for unsigned integers; torch's shift copies the sign bit."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)

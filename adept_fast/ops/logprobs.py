"""Log-probabilities of the chosen tokens and of the most likely ones, on the device."""

from __future__ import annotations

import torch
from torch import Tensor

_LARGEST_WORD = 2**32 - 1


def token_logprobs(logits: Tensor, chosen: Tensor, count: int) -> Tensor:
    """Ids, which float32 holds exactly, and the natural logarithms of their probabilities.

    The first is the chosen id; one out of range becomes −1, and its logarithm NaN. The others are the
    ``count`` most likely ids, best first, of equal ones the smaller first. Kernels differ from this by at
    most 1e-5, and are nearer to the exact values.

    Args:
        logits: float32 [rows, vocab], a vocabulary of less than 2²⁴.
        chosen: int64 [rows].
        count: at most the vocabulary.

    Returns:
        float32 [rows, 2, 1 + count].
    """
    logprobs = logits.log_softmax(-1)
    exists = (chosen >= 0) & (chosen < logits.shape[1])
    ids = torch.where(exists, chosen, 0)[:, None]
    if count:  # row by row: the integers take more memory than the logits
        ids = torch.cat([ids, torch.stack([_largest(row, count) for row in logits])], -1)  # [rows, 1 + count]
    found = torch.stack([ids.float(), logprobs.gather(-1, ids)], 1)
    found[:, 0, 0].masked_fill_(~exists, -1)
    found[:, 1, 0].masked_fill_(~exists, float("nan"))
    return found


def _largest(logits: Tensor, count: int) -> Tensor:
    """The ids of the largest logits of a row, by integers that order them, and equal ones by their ids."""
    bits = (logits + 0.0).view(torch.int32)  # -0 and 0 are the same
    order = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32
    return (order | (_LARGEST_WORD - torch.arange(len(logits), device=logits.device))).topk(count).indices

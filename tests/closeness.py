"""How close a result must be to the exact one: by what must be rounded, whichever torch is installed.

Twice torch's error alone is no tolerance. Where few numbers are compared it can be almost 0 by luck, in one
version of torch and not in another, and a product that lets a NaN through leaves nothing to compare with.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS32 = torch.finfo(torch.float32).eps
ROUNDINGS = 4  # of the size of what is added up


def assert_close(
    ours: Tensor,
    exact: Tensor,
    theirs: Tensor,
    size: Tensor,
    what: object = "",
    inputs: torch.dtype = torch.float32,
) -> None:
    """Off by a few roundings at most, or twice as far as torch, whichever is more.

    Both in the largest error and in the root mean square, for which half of the roundings count.

    Args:
        size: float64, broadcast to ``exact``: the root of the sum of an element's squared terms, or more.
            The terms may cancel in ``exact``, their roundings do not.
        inputs: the dtype to which the terms may be rounded before they are added up.
    """
    assert ours.shape == exact.shape == theirs.shape, what
    if not exact.numel():
        return
    ours_off, theirs_off = ours.double() - exact, theirs.double() - exact
    assert theirs_off.isfinite().all(), f"{what}: torch's result is not finite, and nothing to compare with"
    rounded = torch.finfo(inputs).eps * size.abs().max()
    stored = torch.finfo(ours.dtype).eps / 2 * exact.abs().max()
    allowed = ROUNDINGS * rounded + stored
    largest, their_largest = ours_off.abs().max(), theirs_off.abs().max()
    assert largest <= max(2 * their_largest, allowed), (
        f"{what}: off by {largest:.3g}; torch {their_largest:.3g}, rounding {allowed:.3g}"
    )
    mean, their_mean = rms(ours_off), rms(theirs_off)
    assert mean <= max(2 * their_mean, allowed / 2), (
        f"{what}: off by {mean:.3g} in the mean; torch {their_mean:.3g}, rounding {allowed / 2:.3g}"
    )


def rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def product_size(x: Tensor, w: Tensor) -> Tensor:
    """Of x · wᵀ: [tokens, rows]."""
    return (x.double().square() @ w.double().square().T).sqrt()


def attention_size(
    q: Tensor, cache: Tensor, slots: Tensor, lengths: Tensor, scale: float, *, exact_scores: bool = False
) -> Tensor:
    """Of each token's result: [tokens, 1].

    A score that is off by d changes its weight by a share d of it; ``exact_scores`` are sums of one term.
    """
    sizes = []
    for token, (slot, length) in enumerate(zip(slots.tolist(), lengths.tolist(), strict=True)):
        if length == 0:
            sizes.append(torch.zeros((), dtype=torch.float64))
            continue
        k, v = cache[:, slot, :, :length].double()  # [heads, length, head_dim]
        scores = (k * q[token].double()[:, None] * scale).square().sum(-1).sqrt()  # [heads, length]
        sizes.append(v.abs().max() * (2 + (0 if exact_scores else scores.max())))
    return torch.stack(sizes)[:, None]


def rotary_size(x: Tensor, norm: tuple[Tensor, ...] | None, eps: float) -> Tensor:
    """Of a rotated head, normalised before that if there is a norm: [..., 1]."""
    largest = x.double().abs().amax(-1, keepdim=True)
    if norm is None:
        return 2 * largest
    gamma, beta = (one.double().abs().max() for one in norm)
    deviation = (x.double().var(-1, correction=0, keepdim=True) + eps).sqrt()
    return 2 * (largest / deviation * gamma + beta)

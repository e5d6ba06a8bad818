"""How close a CUDA operator has to be to the exact result: by what torch is off in the same dtype."""

from __future__ import annotations

import torch
from torch import Tensor

EPS32 = torch.finfo(torch.float32).eps


def assert_close(ours: Tensor, exact: Tensor, theirs: Tensor, what: object = "") -> None:
    """At most twice torch's error, in the largest and in the mean square, and a few float32 roundings."""
    assert ours.shape == exact.shape == theirs.shape, what
    ours_off, theirs_off = ours.double() - exact, theirs.double() - exact
    largest = exact.abs().max()
    assert ours_off.abs().max() <= 2 * theirs_off.abs().max() + 4 * EPS32 * largest, what
    assert rms(ours_off) <= 2 * rms(theirs_off) + EPS32 * largest, what


def rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()

"""Which kernels compute the layers of a decode step on a GPU whose matrices are in tiles.

ADEPT_FAST_STEP chooses: ``layers`` (the default) launches four for each layer, ``one`` computes all layers in
one kernel, whose blocks wait for each other. Both give the same bits.
"""

from __future__ import annotations

import os

import torch

from adept_fast.ops import cuda

_VARIABLE, _NAMES = "ADEPT_FAST_STEP", ("layers", "one")
MAX_TOKENS_OF_ONE = 8  # of the one kernel
MAX_HEAD_DIM_OF_ONE = 64


class StepSettingError(ValueError):
    """ADEPT_FAST_STEP names unknown kernels."""


def requested() -> str:
    """The kernels that ADEPT_FAST_STEP names. Raises StepSettingError."""
    name = os.environ.get(_VARIABLE, "") or _NAMES[0]
    if name not in _NAMES:
        raise StepSettingError(f"{_VARIABLE} is {name!r}; expected {' or '.join(_NAMES)}")
    return name


def refuses_one_kernel(device: torch.device, head_dim: int) -> str | None:
    """The reason that one kernel does not compute all layers of a step of few tokens; None if it does."""
    if cuda.compute_capability(device) < (9, 0):
        return "it needs compute capability 9.0"
    if head_dim > MAX_HEAD_DIM_OF_ONE:
        return f"it takes heads of up to {MAX_HEAD_DIM_OF_ONE} dimensions, not {head_dim}"
    return None


def description(head_dim: int) -> str:
    """The kernels in words, for heads of such a size. Raises StepSettingError."""
    if requested() == _NAMES[0]:
        return f"four kernels a layer, {_VARIABLE}=one for one kernel"
    if head_dim > MAX_HEAD_DIM_OF_ONE:
        return f"four kernels a layer, as one takes heads of up to {MAX_HEAD_DIM_OF_ONE} dimensions"
    return f"one kernel for all layers, up to {MAX_TOKENS_OF_ONE} tokens a step, of capability 9.0 on"

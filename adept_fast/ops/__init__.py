"""The operators that the model calls, and which implementation stands behind each."""

from __future__ import annotations

from dataclasses import dataclass

from adept_fast.ops.reference import (
    decode_attention,
    layernorm_qkv,
    linear_residual,
    lm_head,
    mlp,
    prefill_attention,
    rotary_append,
    rotary_table,
)
from adept_fast.ops.sample import INVALID, sample

__all__ = [
    "INVALID",
    "Implementation",
    "decode_attention",
    "implementations",
    "layernorm_qkv",
    "linear_residual",
    "lm_head",
    "mlp",
    "prefill_attention",
    "rotary_append",
    "rotary_table",
    "sample",
]


@dataclass(frozen=True)
class Implementation:
    """Which code runs an operator, and why."""

    operator: str
    kind: str
    reason: str


def implementations() -> list[Implementation]:
    """One entry for each operator, in the order of the decode step."""
    order = (
        layernorm_qkv,
        rotary_append,
        prefill_attention,
        decode_attention,
        linear_residual,
        mlp,
        lm_head,
        sample,
    )
    return [Implementation(op.__name__, "reference", "plain PyTorch; no native one is built") for op in order]

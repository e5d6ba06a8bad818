"""The operators that the model calls, and which implementation stands behind each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from adept_fast import extension
from adept_fast.ops.sample import INVALID, sample
from adept_fast.quantize import Matrix
from adept_fast.weights import ModelWeights

if extension.load().loaded:
    from adept_fast.ops import fake as fake
    from adept_fast.ops import native as chosen
else:
    from adept_fast.ops import reference as chosen  # type: ignore[no-redef]

decode_attention = chosen.decode_attention
layernorm_qkv = chosen.layernorm_qkv
linear_residual = chosen.linear_residual
lm_head = chosen.lm_head
mlp = chosen.mlp
prefill_attention = chosen.prefill_attention
rotary_append = chosen.rotary_append
rotary_table = chosen.rotary_table

__all__ = [
    "INVALID",
    "Implementation",
    "decode_attention",
    "implementations",
    "layernorm_qkv",
    "linear_residual",
    "lm_head",
    "mlp",
    "native_step",
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


def native_step(
    weights: ModelWeights, lm_head: Matrix, cos: Tensor, sin: Tensor, eps: float, scale: float, counts: Tensor
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None:
    """A whole decode step in C++, as ``ops/step.py`` describes it; None where it has to be its operators."""
    if not extension.load().loaded or weights.device.type != "cpu":
        return None
    from adept_fast.ops.step import NativeStep

    return NativeStep(weights, lm_head, cos, sin, eps, scale, counts)


def implementations() -> list[Implementation]:
    """One entry for each operator, in the order of the decode step."""
    built = extension.load()
    if not built.loaded:
        missing = f"plain PyTorch: {built.reason}"
        return [Implementation(name, "reference", missing) for name in (*_NATIVE, *_PLAIN)]
    native = f"C++, {chosen.instruction_set()}; plain PyTorch on a GPU"
    return [Implementation(name, "native", native) for name in _NATIVE] + [
        Implementation(name, "reference", "plain PyTorch, which has it fast enough") for name in _PLAIN
    ]


_NATIVE = ("layernorm_qkv", "rotary_append", "decode_attention", "linear_residual", "mlp", "lm_head")
_PLAIN = ("prefill_attention", "sample")

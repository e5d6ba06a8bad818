"""The operators that the model calls, and which implementation stands behind each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from adept_fast import extension
from adept_fast.ops import cuda
from adept_fast.ops.reference import ABSENT
from adept_fast.ops.sample import INVALID, sample
from adept_fast.ops.token_bounds import token_bounds
from adept_fast.quantization.matrix import Matrix
from adept_fast.weights import ModelWeights

if extension.load().loaded:
    from adept_fast.ops import fake as fake
    from adept_fast.ops import native as chosen
else:
    from adept_fast.ops import reference as chosen  # type: ignore[no-redef]

update_decode_state = chosen.update_decode_state
decode_attention = chosen.decode_attention
embed = chosen.embed
layernorm_qkv = chosen.layernorm_qkv
linear_residual = chosen.linear_residual
lm_head = chosen.lm_head
mlp = chosen.mlp
prefill_attention = chosen.prefill_attention
rotary_append = chosen.rotary_append
rotary_table = chosen.rotary_table

__all__ = [
    "ABSENT",
    "INVALID",
    "Implementation",
    "update_decode_state",
    "decode_attention",
    "embed",
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
    "slot_sampler",
    "token_bounds",
]

_PLAIN = ("embed", "prefill_attention", "sample")  # of which a CPU has no other implementation
_PRODUCTS = ("layernorm_qkv", "linear_residual", "mlp", "lm_head")
_ANY_SIZE = ("embed", "sample", "update_decode_state")  # for which a GPU's kernels take any number of tokens
_IN_ORDER = (
    "embed",
    "layernorm_qkv",
    "rotary_append",
    "decode_attention",
    "linear_residual",
    "mlp",
    "lm_head",
    "prefill_attention",
    "sample",
    "update_decode_state",
)


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
    from adept_fast.ops.step import CpuStep

    return CpuStep(weights, lm_head, cos, sin, eps, scale, counts)


def slot_sampler(device: torch.device) -> Callable[..., Tensor] | None:
    """``ops.cuda.sample``, which reads the settings of all slots on the device; None where there is none."""
    return cuda.sample if device.type == "cuda" and cuda.unavailable(device) is None else None


def implementations(
    device: torch.device | None = None, unreadable: str | None = None, attention: str | None = None
) -> list[Implementation]:
    """One entry for each operator, in the order of the decode step.

    Args:
        device: where the operators run; None for a CPU.
        unreadable: why a GPU's kernels do not take the model's matrices; None where they do.
        attention: the package that a GPU attends to prompts with; None for torch.
    """
    built = extension.load()
    if device is not None and device.type == "cuda":
        return _on_a_gpu(cuda.unavailable(device), unreadable, attention)
    if not built.loaded:
        return [Implementation(name, "reference", f"plain PyTorch: {built.reason}") for name in _IN_ORDER]
    native, plain = f"C++, {chosen.instruction_set()}", "plain PyTorch, which has it fast enough"
    return [
        Implementation(name, "reference", plain) if name in _PLAIN else Implementation(name, "native", native)
        for name in _IN_ORDER
    ]


def _on_a_gpu(unavailable: str | None, unreadable: str | None, attention: str | None) -> list[Implementation]:
    def of(operator: str) -> Implementation:
        if operator == "prefill_attention":
            package = attention if extension.load().loaded else None
            return Implementation(
                operator, "reference" if package is None else "package", package or "PyTorch"
            )
        why_not = unavailable or (unreadable if operator in _PRODUCTS else None)
        if why_not is not None:
            return Implementation(operator, "reference", f"plain PyTorch: {why_not}")
        limit = "" if operator in _ANY_SIZE else f"; plain PyTorch above {cuda.MOST_TOKENS} tokens"
        return Implementation(operator, "native", f"CUDA{limit}")

    return [of(operator) for operator in _IN_ORDER]

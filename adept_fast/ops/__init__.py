"""The operators that the model calls; ``dispatch.TABLE`` lists their implementations."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from adept_fast import extension
from adept_fast.ops import cuda, dispatch, step_kernels
from adept_fast.ops.dispatch import (
    Choice,
    decode_attention,
    embed,
    explain,
    layernorm_qkv,
    linear_residual,
    lm_head,
    mlp,
    prefill_attention,
    prefill_gemm,
    prefill_settings,
    rotary_append,
    slot_sampler,
    table,
    token_logprobs,
    update_decode_state,
)
from adept_fast.ops.reference import ABSENT, rotary_table
from adept_fast.ops.sample import INVALID, sample
from adept_fast.quantization.matrix import Matrix
from adept_fast.weights import ModelWeights

if extension.load().loaded:
    from adept_fast.ops import fake as fake

__all__ = [
    "ABSENT",
    "INVALID",
    "Choice",
    "update_decode_state",
    "cpu_step",
    "decode_attention",
    "embed",
    "explain",
    "gpu_step",
    "layernorm_qkv",
    "linear_residual",
    "lm_head",
    "mlp",
    "prefill_attention",
    "prefill_gemm",
    "prefill_settings",
    "rotary_append",
    "rotary_table",
    "sample",
    "slot_sampler",
    "table",
    "token_logprobs",
]


def cpu_step(
    weights: ModelWeights, lm_head: Matrix, cos: Tensor, sin: Tensor, eps: float, scale: float, counts: Tensor
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None:
    """On a CPU with the extension, a whole decode step as one call (see ``ops/step.py``); None otherwise."""
    if not extension.load().loaded or dispatch.device_type(weights.device) != "cpu":
        return None
    from adept_fast.ops.step import CpuStep

    return CpuStep(weights, lm_head, cos, sin, eps, scale, counts)


def gpu_step(
    weights: ModelWeights, cos: Tensor, sin: Tensor, eps: float, scale: float, head_dim: int
) -> Callable[[Tensor, Tensor, Tensor, Tensor, int, Tensor | None], Tensor] | None:
    """On a GPU with matrices in tiles, the layers of a decode step as one call: ``ops/layers_step.py``."""
    device = weights.device
    if dispatch.device_type(device) != "cuda" or cuda.unavailable(device) is not None:
        return None
    from adept_fast.ops.layers_step import LayersStep, takes

    if not takes(weights):
        return None
    refusal = step_kernels.refuses_one_kernel(device, head_dim)
    one = step_kernels.requested() == "one" and refusal is None
    return LayersStep(weights, cos, sin, eps, scale, one)

"""The operators in C++ on a CPU, and what they promise to a tracer.

They take what ``ops/reference.py`` describes, and hand tensors on a GPU to ``ops/cuda.py``. A matrix is read
once for all tokens of a call. With many tokens arithmetic limits a product and not memory; then torch's GEMM
takes over where it is the better one (``ops/gemm.py``).
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from adept_fast import _C
from adept_fast.ops import cuda, gemm, reference
from adept_fast.ops.reference import rotary_table
from adept_fast.quantization.matrix import Matrix
from adept_fast.quantization.matrix import parts_of as parts

__all__ = [
    "update_decode_state",
    "decode_attention",
    "embed",
    "instruction_set",
    "layernorm_qkv",
    "linear_residual",
    "lm_head",
    "mlp",
    "parts",
    "prefill_attention",
    "rotary_append",
    "rotary_table",
    "use_instruction_set",
]

_native = torch.ops.adept_fast


def embed(table: Tensor, ids: Tensor) -> Tensor:
    return cuda.embed(table, ids) if ids.is_cuda else reference.embed(table, ids)


def layernorm_qkv(x: Tensor, gamma: Tensor, beta: Tensor, eps: float, w: Matrix, b: Tensor) -> Tensor:
    if x.is_cuda:
        return cuda.layernorm_qkv(x, gamma, beta, eps, w, b)
    if gemm.is_better(x, w):
        return gemm.layernorm_qkv(x, gamma, beta, eps, w, b)
    result: Tensor = _native.layernorm_qkv(x, gamma, beta, eps, *parts(w), b)
    return result


def rotary_append(
    qkv: Tensor,
    q_gamma: Tensor | None,
    q_beta: Tensor | None,
    k_gamma: Tensor | None,
    k_beta: Tensor | None,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    positions: Tensor,
    cache_layer: Tensor,
) -> Tensor:
    rotary = cuda.rotary_append if qkv.is_cuda else _native.rotary_append
    q: Tensor = rotary(
        qkv, q_gamma, q_beta, k_gamma, k_beta, eps, cos, sin, slots, positions, cache_layer
    )  # [tokens, heads, head_dim]
    return q


def prefill_attention(q: Tensor, cache_slot: Tensor, start: int, scale: float) -> Tensor:
    attend = cuda.prefill_attention if q.is_cuda else reference.prefill_attention
    return attend(q, cache_slot, start, scale)


def decode_attention(
    q: Tensor, cache_layer: Tensor, slots: Tensor, lengths: Tensor, longest: int, scale: float
) -> Tensor:
    if q.is_cuda:
        return cuda.decode_attention(q, cache_layer, slots, lengths, longest, scale)
    attended: Tensor = _native.decode_attention(q, cache_layer, slots, lengths, longest, scale)
    return attended


def linear_residual(x: Tensor, w: Matrix, b: Tensor, residual: Tensor) -> Tensor:
    if x.is_cuda:
        return cuda.linear_residual(x, w, b, residual)
    if gemm.is_better(x, w):
        return gemm.linear_residual(x, w, b, residual)
    result: Tensor = _native.linear_residual(x, *parts(w), b, residual)
    return result


def mlp(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    w_up: Matrix,
    b_up: Tensor,
    w_down_t: Matrix,
    b_down: Tensor,
    counts: Tensor | None = None,
) -> Tensor:
    if x.is_cuda:
        return cuda.mlp(x, gamma, beta, eps, w_up, b_up, w_down_t, b_down, counts)
    if counts is None and gemm.is_better_for_units(x, w_down_t):
        units = layernorm_qkv(x, gamma, beta, eps, w_up, b_up).relu_().square_()  # [tokens, intermediate]
        return gemm.down(units, w_down_t).add_(b_down).add_(x)
    result: Tensor = _native.mlp(x, gamma, beta, eps, *parts(w_up), b_up, *parts(w_down_t), b_down, counts)
    return result


def lm_head(x: Tensor, gamma: Tensor, beta: Tensor, eps: float, w: Matrix) -> Tensor:
    if x.is_cuda:
        return cuda.lm_head(x, gamma, beta, eps, w)
    if gemm.is_better(x, w):
        return gemm.lm_head(x, gamma, beta, eps, w)
    logits: Tensor = _native.lm_head(x, gamma, beta, eps, *parts(w), w.shape[0])
    return logits


def update_decode_state(
    chosen: Tensor,
    ids: Tensor,
    slots: Tensor,
    positions: Tensor,
    limits: Tensor,
    ends: Tensor,
    counts: Tensor,
    token_ring: Tensor,
) -> None:
    move_on = cuda.update_decode_state if ids.is_cuda else _native.update_decode_state
    move_on(chosen, ids, slots, positions, limits, ends, counts, token_ring)


def instruction_set() -> str:
    """The one in use: ``avx512_vnni``, ``avx512``, ``avx2`` or ``portable``."""
    name: str = _C.instruction_set()
    return name


def use_instruction_set(name: str) -> None:
    """Raises ValueError where this machine cannot run it."""
    if not _C.use_instruction_set(name):
        runnable = _C.runnable_instruction_sets().replace(",", ", ")
        raise ValueError(f"ADEPT_FAST_CPU is {name!r}; this machine runs {runnable}")


if os.environ.get("ADEPT_FAST_CPU"):
    use_instruction_set(os.environ["ADEPT_FAST_CPU"])

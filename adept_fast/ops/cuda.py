"""The operators on an NVIDIA GPU: kernels in CUDA for few tokens, torch's GEMM for many.

With few tokens a step is the time to read the weights, and the kernels are made for that. They take float16,
bfloat16 and a GPU's own packings. What they do not take (more tokens, other matrices, awkward sizes, an
extension that was built without CUDA) is composed of torch's products, as ``ops/reference.py`` has it.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from adept_fast import extension
from adept_fast.ops import optional, reference, wide_gemm
from adept_fast.quantization.layout_gpu import GpuMatrix
from adept_fast.quantization.layouts import kernel_formats
from adept_fast.quantization.matrix import Matrix
from adept_fast.quantization.matrix import parts_of as parts

MOST_TOKENS = 16  # that the kernels take in one call
_MOST_HEAD_DIM = 256
_TRIAL_WORDS = 4096  # that are read to see whether kernels run
VECTOR = 8  # the kernels take rows in multiples of this many elements

operators: Any = torch.ops.adept_fast


@functools.cache
def unavailable(device: torch.device) -> str | None:
    """Why the kernels cannot run on a device; None where they can."""
    built = extension.load()
    if not built.loaded:
        return built.reason
    if not built.cuda:
        return f"the extension is built without CUDA: {built.cuda_reason}"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"its compute capability is {major}.{minor}, and the kernels need 8.0"
    return extension.missing_for_cuda() or None


def fault(device: torch.device) -> str | None:
    """Why the kernels do not run on a device, found by running a small one; None where they do."""
    if (reason := unavailable(device)) is not None:
        return reason
    words = torch.arange(1, _TRIAL_WORDS + 1, dtype=torch.int32, device=device)
    expected = _TRIAL_WORDS * (_TRIAL_WORDS + 1) // 2
    try:
        found = int(operators.read(words))
    except RuntimeError as error:
        return f"one that reads ended with: {str(error).strip().splitlines()[0]}"
    return None if found == expected else f"one that reads gave {found}; expected {expected}"


def embed(table: Tensor, ids: Tensor) -> Tensor:
    """As ``ops/reference.py`` has it; the kernel also reads a table in pinned memory of the host.

    An id that is no row of the table gives zeros, where torch's lookup ends the process's use of the GPU.
    """
    readable = table.dtype in (torch.float16, torch.bfloat16, torch.float32)
    if not readable or unavailable(ids.device) is not None:
        return reference.embed(table, ids)
    rows: Tensor = operators.embed(table, ids)
    return rows


def layernorm_qkv(x: Tensor, gamma: Tensor, beta: Tensor, eps: float, w: Matrix, b: Tensor) -> Tensor:
    if _takes(x, w):
        result: Tensor = operators.layernorm_qkv(x, gamma, beta, eps, *parts(w), b)
        return result
    return _project(optional.layer_norm(x, gamma, beta, eps), w).add_(b)


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
    append = operators.rotary_append if _takes_cache(qkv, cache_layer) else reference.rotary_append
    q: Tensor = append(
        qkv, q_gamma, q_beta, k_gamma, k_beta, eps, cos, sin, slots, positions, cache_layer
    )  # [tokens, heads, head_dim]
    return q


def prefill_attention(q: Tensor, cache_slot: Tensor, start: int, scale: float) -> Tensor:
    attend = optional.prefill_attention(cache_slot) or reference.prefill_attention
    return attend(q, cache_slot, start, scale)


def decode_attention(
    q: Tensor, cache_layer: Tensor, slots: Tensor, lengths: Tensor, longest: int, scale: float
) -> Tensor:
    attend = operators.decode_attention if _takes_cache(q, cache_layer) else reference.decode_attention
    attended: Tensor = attend(q, cache_layer, slots, lengths, longest, scale)
    return attended


def linear_residual(x: Tensor, w: Matrix, b: Tensor, residual: Tensor) -> Tensor:
    if _takes(x, w):
        result: Tensor = operators.linear_residual(x, *parts(w), b, residual)
        return result
    return _project(x, w).add_(b).add_(residual)


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
    if _takes(x, w_up, w_down_t):
        result: Tensor = operators.mlp(
            x, gamma, beta, eps, *parts(w_up), b_up, *parts(w_down_t), b_down, counts
        )
        return result
    normed = optional.layer_norm(x, gamma, beta, eps)
    units = _project(normed, w_up).add_(b_up).relu_().square_()  # [tokens, intermediate]
    if counts is not None:
        reference.count_needed(units, counts)
    return _project_transposed(units, w_down_t).add_(b_down).add_(x)


def lm_head(x: Tensor, gamma: Tensor, beta: Tensor, eps: float, w: Matrix) -> Tensor:
    if _takes(x, w):
        logits: Tensor = operators.lm_head(x, gamma, beta, eps, *parts(w), w.shape[0])
        return logits
    return _project(optional.layer_norm(x, gamma, beta, eps), w)


def sample(
    logits: Tensor,
    slots: Tensor,
    positions: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    repetition_penalty: Tensor,
    seed: Tensor,
    seen: Tensor,
) -> Tensor:
    """The next token of each row, int64 [rows], as ``ops/sample.py`` defines it.

    Settings have a row for each slot, and ``seen`` grows by what the slots with a penalty get: nothing that
    changes from step to step is looked at by the host, so a captured graph of this call stays true.
    """
    ids: Tensor = operators.sample(
        logits, slots, positions, temperature, top_k, top_p, min_p, repetition_penalty, seed, seen
    )
    return ids


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
    """As ``ops/reference.py`` has it; the kernel writes to a ring in pinned memory without a wait."""
    move_on = (
        operators.update_decode_state if unavailable(ids.device) is None else reference.update_decode_state
    )
    move_on(chosen, ids, slots, positions, limits, ends, counts, token_ring)


def _takes(x: Tensor, *matrices: Matrix) -> bool:
    """Whether the kernels multiply these tokens with these matrices."""
    few = x.shape[0] <= MOST_TOKENS
    return few and unavailable(x.device) is None and all(map(_is_readable, matrices))


def _is_readable(w: Matrix) -> bool:
    if isinstance(w, Tensor):
        known = w.dtype in (torch.float16, torch.bfloat16)
    else:
        known = isinstance(w, GpuMatrix) and w.spec.format in kernel_formats(w.device)
    return known and w.shape[1] % VECTOR == 0


def _takes_cache(x: Tensor, cache_layer: Tensor) -> bool:
    head_dim = cache_layer.shape[-1]
    fits = head_dim % VECTOR == 0 and head_dim <= _MOST_HEAD_DIM
    return x.shape[0] <= MOST_TOKENS and fits and unavailable(x.device) is None


def _project(x: Tensor, w: Matrix) -> Tensor:
    return wide_gemm.project(x, w) if isinstance(w, GpuMatrix) else reference.project(x, w)


def _project_transposed(x: Tensor, w_t: Matrix) -> Tensor:
    if isinstance(w_t, GpuMatrix):
        return wide_gemm.project_transposed(x, w_t)
    return reference.project_transposed(x, w_t)

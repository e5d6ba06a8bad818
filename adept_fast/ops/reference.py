"""Every operator in plain PyTorch: the definition that kernels are tested against.

Activations between operators are float32: ``x`` is [tokens, hidden]. Matrices are float32, float16 or
bfloat16, or packed in 8 or 4 bits; vectors are float32. On a CPU, and with packed matrices, every product is
computed in float32; otherwise on a GPU in the matrix's dtype, with float32 accumulation. LayerNorm, rotary,
softmax, residual sums and the MLP's activations are float32 everywhere.

A token whose slot is -1 is *absent*: a decode step may have more rows than there are sequences. Nothing is
written for it, and its position does not matter. No operator of a step reads values on the host, so that a
CUDA graph can capture it. So a token whose slot or position does not exist is absent too, here and in CUDA;
C++ on a CPU can read them and raises an error. An argument that an operator writes shares no memory with the
others.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from adept_fast.quantization.matrix import Matrix

# A matrix of a narrower dtype than its product is widened in blocks of this size, which stay in the cache.
_WIDEN_ELEMENTS = 1 << 18

ABSENT = -2  # the id that ``update_decode_state`` publishes for an absent row


def embed(table: Tensor, ids: Tensor) -> Tensor:
    """The tokens' rows of ``table``: → float32 [tokens, hidden]."""
    return F.embedding(ids, table).float()


def layernorm_qkv(x: Tensor, gamma: Tensor, beta: Tensor, eps: float, w: Matrix, b: Tensor) -> Tensor:
    """LayerNorm, then the QKV projection: → [tokens, 3 * hidden], laid out [head, (q, k, v), head_dim]."""
    return project(layernorm(x, gamma, beta, eps), w) + b


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
    """Normalise q and k per head, rotate them, and write k and v into the cache.

    Args:
        qkv: [tokens, 3 * hidden], laid out [head, (q, k, v), head_dim].
        q_gamma, q_beta, k_gamma, k_beta: [head_dim], or None for no LayerNorm.
        cos, sin: [max_seq_len, rotary_dim / 2] float32, from ``rotary_table``.
        slots, positions: int64 [tokens], where each token's k and v are written; each pair occurs once.
        cache_layer: [2, slots, heads, max_seq_len, head_dim], written in place.

    Returns q, float32 [tokens, heads, head_dim], 0 for an absent token.
    """
    _, slot_count, heads, capacity, _ = cache_layer.shape
    present = _exist(slots, slot_count) & _exist(positions, min(len(cos), capacity))  # [tokens]
    slots, positions = torch.where(present, slots, 0), torch.where(present, positions, 0)
    q, k, v = split_heads(qkv, heads)
    if q_gamma is not None and q_beta is not None and k_gamma is not None and k_beta is not None:
        q, k = layernorm(q, q_gamma, q_beta, eps), layernorm(k, k_gamma, k_beta, eps)
    cos, sin = cos[positions, None], sin[positions, None]  # each [tokens, 1, rotary_dim / 2]
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    _append(cache_layer[0], present, slots, positions, k)
    _append(cache_layer[1], present, slots, positions, v)
    return q.masked_fill(~present[:, None, None], 0)


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v, each [.., heads, head_dim], of qkv [.., 3 * hidden], laid out [head, (q, k, v), head_dim]."""
    q, k, v = qkv.unflatten(-1, (heads, 3, -1)).unbind(-2)
    return q, k, v


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first rotary_dim dimensions of each head, whose two halves are paired.

    Nothing is written in place, so autograd works. ``cos`` and ``sin`` are [.., rotary_dim / 2], at the
    position of x [.., head_dim].
    """
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def prefill_attention(q: Tensor, cache_layer: Tensor, slot: int, start: int, scale: float) -> Tensor:
    """Causal attention of consecutive queries over one sequence's cache.

    Args:
        q: float32 [tokens, heads, head_dim], of the tokens at positions ``start``, ``start + 1``, …
        cache_layer: [2, slots, heads, max_seq_len, head_dim], which already holds those tokens' k and v.

    Returns [tokens, hidden]. Raises ValueError if the cache has no such positions.
    """
    tokens, heads, head_dim = q.shape
    end = start + tokens
    check_start(start, tokens, cache_layer.shape[3])
    k, v = cache_layer[:, slot, None, :, :end].to(
        _attention_dtype(cache_layer)
    )  # each [1, heads, end, head_dim]
    visible = None
    if start:
        key_positions = torch.arange(end, device=q.device)
        visible = key_positions <= torch.arange(start, end, device=q.device)[:, None]  # [tokens, end]
    attended = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None].to(k.dtype), k, v, attn_mask=visible, is_causal=visible is None, scale=scale
    )  # [1, heads, tokens, head_dim]
    return attended[0].transpose(0, 1).reshape(tokens, heads * head_dim).float()


def decode_attention(
    q: Tensor, cache_layer: Tensor, slots: Tensor, lengths: Tensor, longest: int, scale: float
) -> Tensor:
    """Attention of one query per token over the cache of its slot.

    Args:
        q: float32 [tokens, heads, head_dim], token i belonging to slot ``slots[i]``.
        cache_layer: [2, slots, heads, max_seq_len, head_dim].
        lengths: int64 [tokens], the number of positions that a token attends to. Later positions, even NaN,
            do not affect the result. The result is 0 for a length of 0 and for an absent token.
        longest: an upper bound of ``lengths`` that the host knows; larger lengths are cut to it.

    Returns [tokens, hidden]. Raises ValueError if a slot has fewer than ``longest`` positions.
    """
    _, slot_count, _, capacity, _ = cache_layer.shape
    if not 0 <= longest <= capacity:
        raise ValueError(f"longest is {longest}; expected 0 to {capacity}")
    present = _exist(slots, slot_count)
    lengths = torch.where(present, lengths.clamp(min=0), 0)
    # Each [tokens, heads, longest, head_dim].
    k, v = cache_layer[:, torch.where(present, slots, 0), :, :longest].to(_attention_dtype(cache_layer))
    visible = torch.arange(longest, device=q.device) < lengths[:, None]  # [tokens, longest]
    # Scaled before the product, which could otherwise overflow in float16.
    scores = torch.matmul(k, (q * scale)[..., None].to(k.dtype))[..., 0].float()  # [tokens, heads, longest]
    weights = scores.masked_fill(~visible[:, None], float("-inf")).softmax(-1)
    weights = weights.masked_fill((lengths == 0)[:, None, None], 0)  # where softmax gives NaN
    v = v.masked_fill(~visible[:, None, :, None], 0)  # as 0 × NaN is NaN
    return torch.matmul(weights[:, :, None].to(v.dtype), v).flatten(1).float()


def linear_residual(x: Tensor, w: Matrix, b: Tensor, residual: Tensor) -> Tensor:
    """x · wᵀ + b + residual: → [tokens, hidden]."""
    return project(x, w) + b + residual


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
    slots: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """residual + down(relu²(up(LayerNorm(x)))): → [tokens, hidden]; ``residual`` None is x.

    ``w_down_t`` is [intermediate, hidden]. The activations stay float32: in float16, relu² overflows from 256
    on. ``count_active`` adds to ``counts``, int64 [2], which wraps around at 2⁶³. ``slots``, int64 [tokens]:
    below 0 a token is absent, and its activations count as 0; any other is present.
    """
    activations = F.relu(project(layernorm(x, gamma, beta, eps), w_up) + b_up).square()
    if slots is not None:
        activations.masked_fill_((slots < 0)[:, None], 0)
    if counts is not None:
        count_active(activations, counts)
    return (x if residual is None else residual) + project_transposed(activations, w_down_t) + b_down


def lm_head(x: Tensor, gamma: Tensor, beta: Tensor, eps: float, w: Matrix) -> Tensor:
    """The final LayerNorm, then logits: → float32 [tokens, rows of w]."""
    return project(layernorm(x, gamma, beta, eps), w)


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
    """Turn the state of a decode step into the state of the next one, and publish each row's token.

    Each row's count grows by 1. A present row takes its chosen id as the next input, its position grows by 1,
    and its slot becomes -1 if its text ends. Each row writes one 64-bit word into its token ring at index
    count % depth: the count in the upper 32 bits, the chosen id (ABSENT for an absent row) in the lower 32. A
    reader that finds the count it expects has that step's id.

    Args:
        chosen: int64 [rows], the result of ``sample``; an id outside the vocabulary ends the text.
        ids, slots, positions: int64 [rows], the inputs of the finished step, overwritten with those of the
            next. A negative id, such as INVALID, becomes 0.
        limits: int64 [rows], the position at which a row's text ends.
        ends: bool [slots, vocab], the ids at which the text in a slot ends.
        counts: int64 [rows], the number of steps so far, 0 to 2⁶³ − 2; written in place.
        token_ring: int64 [rows, depth], written in place. It may be in host memory if the rest is on a GPU;
            this implementation then copies synchronously, the kernel writes to pinned memory directly.
    """
    (slot_count, vocab), depth = ends.shape, token_ring.shape[1]
    present = _exist(slots, slot_count)  # [rows]
    words = torch.where(present, chosen, ABSENT)
    in_vocabulary = (words >= 0) & (words < vocab)
    is_end = ends[torch.where(present, slots, 0), words.clamp(0, vocab - 1)] | ~in_vocabulary
    ids.copy_(torch.where(present, words.clamp(min=0), ids))
    positions.add_(present)
    slots.masked_fill_(present & (is_end | (positions >= limits)), -1)
    counts.add_(1)
    published = ((counts << 32) | (words & 0xFFFFFFFF))[:, None].to(token_ring.device)
    token_ring.scatter_(1, (counts % depth)[:, None].to(token_ring.device), published)


def rotary_table(
    rotary_dim: int, theta: float, max_seq_len: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin of position × θ^(−2i / rotary_dim), each float32 [max_seq_len, rotary_dim / 2]."""
    angles = rotary_angles(torch.arange(max_seq_len, device=device), rotary_dim, theta)
    return angles.cos(), angles.sin()


def rotary_angles(positions: Tensor, rotary_dim: int, theta: float) -> Tensor:
    """position × θ^(−2i / rotary_dim): float32 [positions, rotary_dim / 2].

    Rounded to float32 as in transformers' PersimmonRotaryEmbedding (RoFormer, Su et al. 2021).
    """
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=positions.device) / rotary_dim
    return torch.outer(positions.float(), 1.0 / theta**exponents)


def compute_dtype(matrix: Matrix) -> torch.dtype:
    """The dtype in which products with ``matrix`` are computed."""
    return matrix.dtype if isinstance(matrix, Tensor) and matrix.is_cuda else torch.float32


def check_start(start: int, tokens: int, capacity: int) -> None:
    """Raises ValueError if positions from ``start`` on exceed those of the cache."""
    if not 0 <= start <= capacity - tokens:
        raise ValueError(f"start is {start} of {tokens} tokens; expected 0 to {capacity - tokens}")


def count_active(activations: Tensor, counts: Tensor) -> None:
    """Add the numbers of active neurons and of all neurons to ``counts``, int64 [2]; nothing without tokens.

    A neuron is active if its activation is not 0 for some token; only those rows of ``w_down_t`` are read.
    """
    if len(activations):
        active = (activations != 0).any(0).sum()
        counts += torch.stack((active, torch.full_like(active, activations.shape[1])))


def _attention_dtype(cache: Tensor) -> torch.dtype:
    return cache.dtype if cache.is_cuda else torch.float32


def _exist(indices: Tensor, end: int) -> Tensor:
    """Whether each index is at least 0 and below ``end``: bool, of the shape of ``indices``."""
    return (indices >= 0) & (indices < end)


def _append(cache: Tensor, present: Tensor, slots: Tensor, positions: Tensor, rows: Tensor) -> None:
    """Write rows [tokens, heads, head_dim] of the present tokens into [slots, heads, max_seq_len, head_dim].

    Only the device knows which tokens are present, so all write: an absent one repeats the write of the first
    that is present. If none is, all write the values that slot 0 already has at position 0. The slots and
    positions of absent tokens are 0.
    """
    rows_of = torch.arange(len(slots), device=slots.device)
    writer = torch.where(present, rows_of, present.to(torch.uint8).argmax())  # [tokens]
    rows = torch.where(present.any(), rows.to(cache.dtype)[writer], cache[0, :, 0])
    cache[slots[writer], :, positions[writer]] = rows


def layernorm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, gamma.shape, gamma, beta, eps)


def project(x: Tensor, w: Matrix) -> Tensor:
    """x · wᵀ in float32 [tokens, out], for w of [out, in]."""
    dtype = compute_dtype(w)
    if isinstance(w, Tensor) and w.dtype == dtype:
        return F.linear(x.to(dtype), w).float()
    blocks = [F.linear(x, block) for block in _widened(w)]
    return torch.cat(blocks, dim=-1) if blocks else x.new_empty(len(x), 0, dtype=torch.float32)


def project_transposed(x: Tensor, w_t: Matrix) -> Tensor:
    """x · w_t in float32 [tokens, out], for w_t of [in, out] and an x ≥ 0 that may exceed float16."""
    dtype = compute_dtype(w_t)
    if isinstance(w_t, Tensor) and w_t.dtype == dtype == torch.float32:
        return x @ w_t
    if isinstance(w_t, Tensor) and w_t.dtype == dtype:
        # Scaling by a power of two is exact, and brings each token's largest activation near 1.
        exponents = torch.frexp(x.amax(-1, keepdim=True)).exponent
        return torch.ldexp((torch.ldexp(x, -exponents).to(dtype) @ w_t).float(), exponents)
    out = x.new_zeros(x.shape[0], w_t.shape[1])
    start = 0
    for block in _widened(w_t):
        out.addmm_(x[:, start : start + len(block)], block)
        start += len(block)
    return out


def _widened(matrix: Matrix) -> Iterator[Tensor]:
    """The matrix in float32, in blocks of rows."""
    rows = max(1, _WIDEN_ELEMENTS // matrix.shape[1])
    for start in range(0, matrix.shape[0], rows):
        if isinstance(matrix, Tensor):
            yield matrix[start : start + rows].float()
        else:
            yield matrix.dequantize(start, start + rows)

"""Every operator in plain PyTorch: the definition that kernels are tested against.

Activations between operators are float32: ``x`` is [tokens, hidden]. Matrices come in float32, float16 or
bfloat16, or packed in 8 or 4 bits; vectors in float32. On a CPU, and with packed matrices, every product is
computed in float32; else on a GPU in the matrix's dtype, with float32 accumulation. LayerNorm, rotary,
softmax, residual sums and relu² units are float32 everywhere.

A token whose slot is -1 is *absent*: a decode step may have more rows than there are sequences. Nothing is
written for it, and its position does not matter. No operator of a step looks at values on the host, so that
it can be captured into a CUDA graph; so a token whose slot or position does not exist is absent too, here and
in CUDA. C++ on a CPU, which can look, refuses it. An argument that an operator writes shares no memory with
the others.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from adept_fast.quantization.matrix import Matrix, QuantizedMatrix

# Matrices that are narrower than their products are widened in blocks of this many elements, so that a block
# stays in the cache.
_WIDEN_ELEMENTS = 1 << 18

ABSENT = -2  # what ``update_decode_state`` tells of a row whose slot is -1


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
        slots, positions: int64 [tokens], where each token's k and v go; no two tokens to one place.
        cache_layer: [2, slots, heads, max_seq_len, head_dim], written in place.

    Returns q, float32 [tokens, heads, head_dim], 0 for an absent token.
    """
    _, slot_count, heads, capacity, _ = cache_layer.shape
    present = _exist(slots, slot_count) & _exist(positions, min(len(cos), capacity))  # [tokens]
    slots, positions = torch.where(present, slots, 0), torch.where(present, positions, 0)
    norms = (q_gamma, q_beta, k_gamma, k_beta)
    q, k, v = normalise_and_rotate(qkv, heads, norms, eps, cos[positions], sin[positions])
    _append(cache_layer[0], present, slots, positions, k)
    _append(cache_layer[1], present, slots, positions, v)
    return q.masked_fill(~present[:, None, None], 0)


def normalise_and_rotate(
    qkv: Tensor, heads: int, norms: tuple[Tensor | None, ...], eps: float, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """q and k, normalised per head and rotated, and v: each float32 [tokens, heads, head_dim].

    Nothing is written in place, so gradients flow.

    Args:
        qkv: [tokens, 3 * hidden], laid out [head, (q, k, v), head_dim].
        norms: q_gamma, q_beta, k_gamma, k_beta as ``rotary_append`` takes them.
        cos, sin: float32 [tokens, rotary_dim / 2], of each token's own position.
    """
    q, k, v = qkv.view(len(qkv), heads, 3, qkv.shape[1] // (3 * heads)).unbind(
        2
    )  # each [tokens, heads, head_dim]
    q_gamma, q_beta, k_gamma, k_beta = norms
    if q_gamma is not None and q_beta is not None and k_gamma is not None and k_beta is not None:
        q = layernorm(q, q_gamma, q_beta, eps)
        k = layernorm(k, k_gamma, k_beta, eps)
    cos, sin = cos[:, None], sin[:, None]  # [tokens, 1, rotary_dim / 2]
    return _rotate(q, cos, sin), _rotate(k, cos, sin), v


def prefill_attention(q: Tensor, cache_slot: Tensor, start: int, scale: float) -> Tensor:
    """Causal attention of consecutive queries over one sequence's cache.

    Args:
        q: float32 [tokens, heads, head_dim], of the tokens at positions ``start``, ``start + 1``, …
        cache_slot: [2, heads, positions, head_dim], in which those tokens' k and v are already written.

    Returns [tokens, hidden]. Raises ValueError where the cache has no such positions.
    """
    tokens, heads, head_dim = q.shape
    end, capacity = start + tokens, cache_slot.shape[2]
    if not 0 <= start <= end <= capacity:
        raise ValueError(f"start is {start} of {tokens} tokens; expected 0 to {capacity - tokens}")
    k, v = cache_slot[:, None, :, :end].to(_attention_dtype(cache_slot))  # each [1, heads, end, head_dim]
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
    """Attention of one query a sequence over what its slot holds.

    Args:
        q: float32 [tokens, heads, head_dim], token i belonging to slot ``slots[i]``.
        cache_layer: [2, slots, heads, max_seq_len, head_dim].
        lengths: int64 [tokens], how many positions of the slot count; past them nothing reaches the result,
            whatever stands there; 0 gives 0, and so does an absent token.
        longest: an upper bound of ``lengths`` that the host knows; a length counts up to it.

    Returns [tokens, hidden]. Raises ValueError where a slot has fewer than ``longest`` positions.
    """
    _, slot_count, _, capacity, _ = cache_layer.shape
    if not 0 <= longest <= capacity:
        raise ValueError(f"longest is {longest}; expected 0 to {capacity}")
    present = _exist(slots, slot_count)
    lengths = torch.where(present, lengths.clamp(min=0), 0)
    k, v = cache_layer[:, torch.where(present, slots, 0), :, :longest].to(
        _attention_dtype(cache_layer)
    )  # each [tokens, heads, longest, d]
    visible = torch.arange(longest, device=q.device) < lengths[:, None]  # [tokens, longest]
    # Scaled before the product, which float16 might otherwise not hold.
    scores = torch.matmul(k, (q * scale)[..., None].to(k.dtype))[..., 0].float()  # [tokens, heads, longest]
    weights = scores.masked_fill(~visible[:, None], float("-inf")).softmax(-1)
    weights = weights.masked_fill((lengths == 0)[:, None, None], 0)  # where nothing counts, softmax gives NaN
    v = v.masked_fill(~visible[:, None, :, None], 0)  # 0 × NaN is NaN: what does not count must be finite
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
) -> Tensor:
    """x + down(relu²(up(LayerNorm(x)))): → [tokens, hidden].

    ``w_down_t`` is [intermediate, hidden]. The units stay float32: in float16, relu² overflows where a
    pre-activation passes 256. ``counts``, int64 [2], grows by the units that are not 0 for some token, whose
    rows of ``w_down_t`` are needed, and by all units; past 2⁶³ − 1 it goes on at −2⁶³.
    """
    units = F.relu(project(layernorm(x, gamma, beta, eps), w_up) + b_up).square()  # [tokens, intermediate]
    if counts is not None:
        count_needed(units, counts)
    return x + project_transposed(units, w_down_t) + b_down


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
    """What a decode step leaves for the next one, row by row; ``token_ring`` tells a reader what was chosen.

    A row's count grows by 1. Where the row is present, its chosen id becomes its next, one position further
    on; and if its text ends with that, its slot becomes -1. What is told is the chosen id, or ``ABSENT``: the
    lower 32 bits of one 64-bit word, whose upper 32 bits are the count, at the count's place around the ring.
    So a reader who finds the count that he waits for has the id that belongs to it.

    Args:
        chosen: int64 [rows], of the operator ``sample``; an id outside the vocabulary ends the text.
        ids, slots, positions: int64 [rows], written in place: of the step that was, then of the next one. An
            id that is no token's (``sample``'s INVALID) becomes 0.
        limits: int64 [rows], the position at which a row's text ends.
        ends: bool [slots, vocab], the ids at which the text in a slot ends.
        counts: int64 [rows], 0 to 2⁶³ − 2, how many steps there were; written in place.
        token_ring: int64 [rows, depth], written in place. It may be in host memory if the rest is on a GPU;
            here that takes a copy that waits.
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
    told = (counts << 32) | (words & 0xFFFFFFFF)
    token_ring.scatter_(
        1, (counts % depth)[:, None].to(token_ring.device), told[:, None].to(token_ring.device)
    )


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


def count_needed(units: Tensor, counts: Tensor) -> None:
    """Add to ``counts``, int64 [2], the units that are not 0 for some token, and all; none without tokens."""
    if not len(units):
        return
    needed = (units != 0).any(0).sum()
    counts += torch.stack((needed, torch.full_like(needed, units.shape[1])))


def _attention_dtype(cache: Tensor) -> torch.dtype:
    return cache.dtype if cache.is_cuda else torch.float32


def _exist(indices: Tensor, end: int) -> Tensor:
    """Which of them are from 0 to below ``end``: bool, shaped as they are."""
    return (indices >= 0) & (indices < end)


def _append(cache: Tensor, present: Tensor, slots: Tensor, positions: Tensor, rows: Tensor) -> None:
    """Write rows [tokens, heads, head_dim] into [slots, heads, max_seq_len, head_dim], but for absent tokens.

    Every token writes, since which ones are there only the device knows: an absent one what the first that is
    there writes, to the same place; and where none is there, all write what already stands in one place. The
    slots and positions of absent ones are 0.
    """
    writer = torch.where(
        present, torch.arange(len(slots), device=slots.device), present.to(torch.uint8).argmax()
    )  # [tokens]
    rows = torch.where(present.any(), rows.to(cache.dtype)[writer], cache[0, :, 0])
    cache[slots[writer], :, positions[writer]] = rows


def layernorm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, gamma.shape, gamma, beta, eps)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first dimensions of each head, the first half of them paired with the second half."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def project(x: Tensor, w: Matrix) -> Tensor:
    """x · wᵀ in float32 [tokens, out], for w of [out, in]."""
    dtype = compute_dtype(w)
    if isinstance(w, Tensor) and w.dtype == dtype:
        return F.linear(x.to(dtype), w).float()
    blocks = [F.linear(x, block) for block in _widened(w)]
    return torch.cat(blocks, dim=-1) if blocks else x.new_empty(len(x), 0, dtype=torch.float32)


def project_transposed(x: Tensor, w_t: Matrix) -> Tensor:
    """x · w_t in float32 [tokens, out], for w_t of [in, out] and an x too large for float16."""
    dtype = compute_dtype(w_t)
    if isinstance(w_t, Tensor) and w_t.dtype == dtype == torch.float32:
        return x @ w_t
    if isinstance(w_t, Tensor) and w_t.dtype == dtype:
        # A power of two for each token keeps its largest unit near 1, and changes no bit of the result.
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
        if isinstance(matrix, QuantizedMatrix):
            yield matrix.dequantize(start, start + rows)
        else:
            yield matrix[start : start + rows].float()

"""Every operator in plain PyTorch: the definition that kernels are tested against.

Activations between operators are float32: ``x`` is [tokens, hidden]. Matrices come in float32, float16 or
bfloat16, or packed in 8 or 4 bits; vectors in float32. On a CPU, and with packed matrices, every product is
computed in float32; else on a GPU in the matrix's dtype, with float32 accumulation. LayerNorm, rotary,
softmax, residual sums and relu² units are float32 everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from adept_fast.quantize import Matrix, QuantizedMatrix

# Matrices that are narrower than their products are widened in blocks of this many elements, so that a block
# stays in the cache.
_WIDEN_ELEMENTS = 1 << 18


def layernorm_qkv(x: Tensor, gamma: Tensor, beta: Tensor, eps: float, w: Matrix, b: Tensor) -> Tensor:
    """LayerNorm, then the QKV projection: → [tokens, 3 * hidden], laid out [head, (q, k, v), head_dim]."""
    return project(_layernorm(x, gamma, beta, eps), w) + b


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
        slots, positions: int64 [tokens], where each token's k and v go.
        cache_layer: [2, slots, heads, max_seq_len, head_dim], written in place.

    Returns q, float32 [tokens, heads, head_dim].
    """
    heads, head_dim = cache_layer.shape[2], cache_layer.shape[4]
    q, k, v = qkv.view(-1, heads, 3, head_dim).unbind(2)  # each [tokens, heads, head_dim]
    if q_gamma is not None and q_beta is not None and k_gamma is not None and k_beta is not None:
        q = _layernorm(q, q_gamma, q_beta, eps)
        k = _layernorm(k, k_gamma, k_beta, eps)
    cos, sin = cos[positions][:, None], sin[positions][:, None]  # [tokens, 1, rotary_dim / 2]
    cache_layer[0][slots, :, positions] = _rotate(k, cos, sin).to(cache_layer.dtype)
    cache_layer[1][slots, :, positions] = v.to(cache_layer.dtype)
    return _rotate(q, cos, sin)


def prefill_attention(q: Tensor, cache_slot: Tensor, start: int, scale: float) -> Tensor:
    """Causal attention of consecutive queries over one sequence's cache.

    Args:
        q: float32 [tokens, heads, head_dim], of the tokens at positions ``start``, ``start + 1``, …
        cache_slot: [2, heads, positions, head_dim], in which those tokens' k and v are already written.

    Returns [tokens, hidden].
    """
    tokens, heads, head_dim = q.shape
    end = start + tokens
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
            whatever stands there; 0 gives 0.
        longest: an upper bound of ``lengths`` that the host knows.

    Returns [tokens, hidden].
    """
    k, v = cache_layer[:, slots, :, :longest].to(
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
    rows of ``w_down_t`` are needed, and by all units.
    """
    units = F.relu(project(_layernorm(x, gamma, beta, eps), w_up) + b_up).square()  # [tokens, intermediate]
    if counts is not None:
        count_needed(units, counts)
    return x + project_transposed(units, w_down_t) + b_down


def lm_head(x: Tensor, gamma: Tensor, beta: Tensor, eps: float, w: Matrix) -> Tensor:
    """The final LayerNorm, then logits: → float32 [tokens, rows of w]."""
    return project(_layernorm(x, gamma, beta, eps), w)


def rotary_table(
    rotary_dim: int, theta: float, max_seq_len: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin of position × θ^(−2i / rotary_dim), each float32 [max_seq_len, rotary_dim / 2].

    The angles are rounded to float32 as in transformers' PersimmonRotaryEmbedding (RoFormer, Su et al. 2021).
    """
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=device) / rotary_dim
    angles = torch.outer(torch.arange(max_seq_len, device=device).float(), 1.0 / theta**exponents)
    return angles.cos(), angles.sin()


def compute_dtype(matrix: Matrix) -> torch.dtype:
    """The dtype in which products with ``matrix`` are computed."""
    return matrix.dtype if isinstance(matrix, Tensor) and matrix.is_cuda else torch.float32


def count_needed(units: Tensor, counts: Tensor) -> None:
    """Add to ``counts``, int64 [2], the units that are not 0 for some token, and all there are."""
    needed = (units != 0).any(0).sum()
    counts += torch.stack((needed, torch.full_like(needed, units.shape[1])))


def _attention_dtype(cache: Tensor) -> torch.dtype:
    return cache.dtype if cache.is_cuda else torch.float32


def _layernorm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
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
    return torch.cat([F.linear(x, block) for block in _widened(w)], dim=-1)


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

"""Attention of a padded batch, with gradients: torch's own, or an explicit one that returns the weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def visible_keys(
    attention_mask: Tensor | None,
    batch: int,
    tokens: int,
    past: int,
    sequences: Tensor | None,
    device: torch.device,
) -> Tensor | None:
    """The keys that each query attends to: bool [batch or 1, 1, tokens, past + tokens]; None if causal.

    Args:
        attention_mask: [batch, past + tokens], 0 or False for padding; None for no padding.
        sequences: int64 [batch, tokens], the sequence of a packed row that each token belongs to.

    Raises ValueError for a mask of another shape.
    """
    total = past + tokens
    if attention_mask is not None and attention_mask.shape != (batch, total):
        raise ValueError(
            f"attention_mask has shape {list(attention_mask.shape)}; expected {[batch, total]}: "
            f"the batch, and {past} positions of the cache plus {tokens} new ones"
        )
    padded = attention_mask is not None and not bool(attention_mask.all())
    if not padded and sequences is None and (past == 0 or tokens == 1):
        return None
    positions = torch.arange(total, device=device)
    visible = (positions <= positions[past:, None])[None, None]  # [1, 1, tokens, total]
    if attention_mask is not None and padded:
        visible = visible & attention_mask.to(device).bool()[:, None, None]
    if sequences is not None:
        visible = visible & (sequences[:, None, :, None] == sequences[:, None, None])
    return visible


def packed_sequences(position_ids: Tensor) -> Tensor | None:
    """The sequence of its row that each token belongs to, [batch, tokens]; None if no row has several.

    A position [batch, tokens] that is not its predecessor plus one begins another sequence.
    """
    breaks = position_ids.diff(dim=-1) != 1  # [batch, tokens - 1]
    return F.pad(breaks.cumsum(-1), (1, 0)) if bool(breaks.any()) else None


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, scale: float, dropout: float) -> Tensor:
    """→ [batch, heads, tokens, head_dim]; 0 for a query without visible keys.

    Args:
        q: [batch, heads, tokens, head_dim]; k and v have all positions.
        visible: the result of ``visible_keys``.
        dropout: of the weights.
    """
    is_causal = visible is None and q.shape[2] > 1
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=visible, dropout_p=dropout, is_causal=is_causal, scale=scale
    )


def attend_with_weights(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, scale: float, dropout: float
) -> tuple[Tensor, Tensor]:
    """The result of ``attend`` and the weights [batch, heads, tokens, positions].

    A query without visible keys has equal weights, as in transformers' eager attention.
    """
    tokens, total = q.shape[2], k.shape[2]
    if visible is None:
        positions = torch.arange(total, device=q.device)
        visible = positions <= positions[total - tokens :, None]
    scores = torch.matmul(q, k.transpose(2, 3)) * scale
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    weights = F.dropout(scores.float().softmax(-1), dropout)
    return torch.matmul(weights.to(v.dtype), v), weights

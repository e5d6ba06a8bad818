"""Attention of a padded batch, with gradients: torch's own, or an explicit one that returns the weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def is_traced() -> bool:
    """Whether torch.compile or torch.export records the call, so that values of tensors are not known.

    Sizes are not known either if they are dynamic: ``len`` and keys of a dict would fix them.
    """
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]


class VisibleKeys:
    """The keys that each query of a call attends to: a causal mask, with padding and packed sequences.

    Args:
        attention_mask: [batch, keys], 0 for padding; or [batch or 1, heads or 1, queries, keys],
            bool or numbers that are added to the scores, in place of the causal mask; None for no padding.
        columns: int64 [queries], the position of each query in the cache.
        past: the number of keys before the first query; None if only ``columns`` has it.
        sequences: int64 [batch, queries], the sequence of a packed row that each token belongs to.

    Raises ValueError for a mask of another shape.
    """

    def __init__(
        self,
        attention_mask: Tensor | None,
        batch: int,
        columns: Tensor,
        past: int | None,
        sequences: Tensor | None = None,
    ) -> None:
        self.columns = columns
        self.past = past
        self.sequences = sequences
        self.explicit = self.padding = None
        if attention_mask is not None and attention_mask.dim() == 4:
            _check_explicit(attention_mask, batch, columns.shape[0])
            self.explicit = attention_mask.to(columns.device)
        elif attention_mask is not None:
            differs = past is not None and attention_mask.shape[-1] != past + columns.shape[0]
            if attention_mask.dim() != 2 or attention_mask.shape[0] != batch or differs:
                raise ValueError(_misshapen(attention_mask, batch, past, columns.shape[0]))
            if is_traced() or not bool(attention_mask.all()):
                self.padding = attention_mask.to(columns.device).bool()
        self._latest: tuple[int, Tensor | None] | None = None

    def among(self, keys: int) -> Tensor | None:
        """The mask over ``keys`` keys, for ``attend``; None if it is causal, or all keys are visible."""
        # All layers ask for the same number, which has no fixed value where it is traced.
        if self._latest is None or self._latest[0] != keys:
            self._latest = keys, self._mask(keys)
        return self._latest[1]

    def _mask(self, keys: int) -> Tensor | None:
        queries = self.columns.shape[0]
        if self.explicit is not None:
            if self.explicit.shape[-1] < keys:
                raise ValueError(
                    f"attention_mask has shape {list(self.explicit.shape)}; expected {keys} keys at the end"
                )
            return self.explicit[..., :keys]
        exact = self.past is not None and self.past + queries == keys
        if self.padding is None and self.sequences is None and exact and (self.past == 0 or queries == 1):
            return None
        visible = (torch.arange(keys, device=self.columns.device) <= self.columns[:, None])[None, None]
        if self.padding is not None:
            padding = self.padding  # [batch, keys]
            if padding.shape[1] != keys:  # a static cache has keys that are not filled yet
                padding = F.pad(padding, (0, keys - padding.shape[1]))
            visible = visible & padding[:, None, None]
        if self.sequences is not None:
            visible = visible & (self.sequences[:, None, :, None] == self.sequences[:, None, None])
        return visible  # [batch or 1, 1, queries, keys]


def _check_explicit(mask: Tensor, batch: int, queries: int) -> None:
    if mask.shape[0] not in (1, batch) or mask.shape[2] not in (1, queries):
        raise ValueError(
            f"attention_mask has shape {list(mask.shape)}; expected [batch or 1, heads or 1, queries, keys] "
            f"of a batch of {batch} with {queries} queries"
        )
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(
            f"attention_mask has four dimensions and dtype {mask.dtype}; expected bool, or floats to add"
        )


def _misshapen(mask: Tensor, batch: int, past: int | None, tokens: int) -> str:
    total = "keys" if past is None else past + tokens
    return (
        f"attention_mask has shape {list(mask.shape)}; expected [{batch}, {total}]: "
        f"the batch, and {'those' if past is None else past} positions of the cache plus {tokens} new ones"
    )


def packed_sequences(position_ids: Tensor) -> Tensor | None:
    """The sequence of its row that each token belongs to, [batch, tokens]; None if no row has several.

    A position [batch, tokens] that is not its predecessor plus one begins another sequence.
    """
    breaks = position_ids.diff(dim=-1) != 1  # [batch, tokens - 1]
    return F.pad(breaks.cumsum(-1), (1, 0)) if is_traced() or bool(breaks.any()) else None


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, scale: float, dropout: float) -> Tensor:
    """→ [batch, heads, tokens, head_dim]; 0 for a query without visible keys.

    Args:
        q: [batch, heads, tokens, head_dim]; k and v have all positions.
        visible: the result of ``VisibleKeys.among``.
        dropout: of the weights.
    """
    is_causal = visible is None and q.shape[2] > 1
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=_added(visible, q.dtype), dropout_p=dropout, is_causal=is_causal, scale=scale
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
    if visible.dtype == torch.bool:
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    else:
        scores = scores + visible.to(scores.dtype)
    weights = F.dropout(scores.float().softmax(-1), dropout)
    return torch.matmul(weights.to(v.dtype), v), weights


def _added(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return mask if mask is None or mask.dtype == torch.bool else mask.to(dtype)

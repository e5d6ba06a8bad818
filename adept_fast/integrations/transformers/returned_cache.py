"""The cache that ``generate`` returns: the runtime's keys and values as transformers' DynamicCache.

A later ``generate`` with it processes only the tokens that follow. ``forward`` and transformers' own decoding
accept it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from adept_fast.integrations.transformers.not_served import NotServedError
from adept_fast.integrations.transformers.token_loop import TokenLoop

# Attributes of a cache, which its copies have too.
_RETURNED = "_returned_by_adept_fast"
_GIVEN = "_given_to_adept_fast"


def mark_as_given(cache: Any) -> None:
    """Mark a cache as the caller's; without one ``generate`` creates its own."""
    if isinstance(cache, Cache):
        setattr(cache, _GIVEN, True)


def is_given(cache: Any) -> bool:
    """Whether the cache is the caller's, even if it is empty."""
    return getattr(cache, _GIVEN, False) is True or cache.get_seq_length() > 0


def new_cache() -> DynamicCache:
    """An empty cache that the runtime can continue from."""
    cache = DynamicCache()
    setattr(cache, _RETURNED, True)
    return cache


def continues_from(cache: Any) -> bool:
    """Whether the runtime returned this cache, or the original of this copy."""
    return getattr(cache, _RETURNED, False) is True


def read_cache(cache: Any, starts: Sequence[int], columns: int) -> list[Tensor]:
    """The keys and values of each row's tokens: [layer, k/v, head, tokens, head_dim].

    Args:
        starts: the column of each row's first token; the columns before are padding.
        columns: of the prompts that continue the cache.

    Raises NotServedError for a cache of other rows, or with as many columns or more.
    """
    layers = [(layer.keys, layer.values) for layer in cache.layers]
    rows, _, held, _ = layers[0][0].shape  # [rows, heads, columns, head_dim]
    if rows != len(starts):
        raise NotServedError(f"a cache of {rows} rows for {len(starts)} prompts")
    if held >= columns:
        raise NotServedError(f"a cache of {held} columns for prompts of {columns}")
    if held <= max(starts):
        raise NotServedError("a cache that holds padding only of a prompt")
    return [
        torch.stack([torch.stack((keys[row, :, start:], values[row, :, start:])) for keys, values in layers])
        for row, start in enumerate(starts)
    ]


def extend(cache: Any, loop: TokenLoop, starts: Sequence[int], columns: int, dtype: torch.dtype) -> None:
    """Append the loop's keys and values up to ``columns``, in the dtype of the model; padding is zeros."""
    held = cache.get_seq_length()
    rows = [
        torch.nn.functional.pad(loop.keys_and_values(row, columns - start), (0, 0, start, 0))
        for row, start in enumerate(starts)
    ]  # each [layer, k/v, head, columns, head_dim]
    # [layer, k/v, rows, head, new columns, head_dim]
    both = torch.stack(rows, dim=2)[..., held:, :].to(dtype)
    for index, (keys, values) in enumerate(both):
        cache.update(keys, values, index)

"""KeyValueCache: a static cache with its filled length, for forward passes."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from adept_fast.arguments import integer
from adept_fast.config import PersimmonConfig as Architecture
from adept_fast.kv_cache import StaticKVCache
from adept_fast.modeling.base import BaseConfig
from adept_fast.modeling.config import architecture_of


class KeyValueCache:
    """Keys and values of a batch, in a StaticKVCache whose slots are the rows of the batch.

    All rows have the same length, padding included. A full cache is copied to one of twice the size. Written
    values carry no gradient.

    Args:
        max_batch_size: the number of rows of every batch.
        max_seq_len: the initial number of positions.
        dtype, device: those of the model.
    """

    def __init__(
        self,
        config: Architecture | BaseConfig,
        *,
        max_batch_size: int,
        max_seq_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        config = architecture_of(config)
        max_batch_size = integer("max_batch_size", max_batch_size, 1)
        max_seq_len = integer("max_seq_len", max_seq_len, 1)
        self.config = config
        self.length = 0  # positions of each row that are filled
        self._store = StaticKVCache(
            config, max_batch_size=max_batch_size, max_seq_len=max_seq_len, dtype=dtype, device=device
        )

    # What transformers' generate asks a cache.
    is_compileable = False
    is_sliding = is_linear = (False,)

    def get_max_cache_shape(self, layer_index: int = 0) -> int:
        """-1, as it grows."""
        return -1

    get_max_length = get_max_cache_shape  # its name in transformers since 5.24

    def __len__(self) -> int:
        return self.config.num_hidden_layers

    def get_seq_length(self, layer_index: int = 0) -> int:
        """The number of filled positions of each row."""
        return self.length

    def crop(self, length: int) -> None:
        """Keep the first ``length`` positions; a negative length removes as many positions at the end."""
        length = integer("length", length, -self.length, self.length)
        self.length = length if length >= 0 else self.length + length

    def require_batch(self, rows: int) -> None:
        """Raises ValueError for a batch of another size."""
        if rows != self._store.max_batch_size:
            raise ValueError(f"the batch has {rows} rows; expected {self._store.max_batch_size} as the cache")

    def _make_room(self, tokens: int) -> None:
        """Grow if ``tokens`` more positions do not fit."""
        store = self._store
        needed = self.length + tokens
        if needed <= store.max_seq_len:
            return
        self._store = StaticKVCache(
            self.config,
            max_batch_size=store.max_batch_size,
            max_seq_len=max(needed, 2 * store.max_seq_len),
            dtype=store.data.dtype,
            device=store.data.device,
        )
        self._store.data[..., : self.length, :] = store.data[..., : self.length, :]

    def update(
        self, k: Tensor, v: Tensor, layer_index: int, cache_kwargs: object = None
    ) -> tuple[Tensor, Tensor]:
        """Write k and v [batch, heads, tokens, head_dim] of one layer after the filled positions.

        The layers are updated in order; the length grows with the last one. Returns all keys and values in
        the dtype of ``k``; those of this call carry their gradients.
        """
        if layer_index == 0:
            self.require_batch(k.shape[0])
            self._make_room(k.shape[2])
        layer = self._store.layer(layer_index)  # [k/v, batch, heads, position, head_dim]
        start, end = self.length, self.length + k.shape[2]
        layer[0, :, :, start:end] = k.detach()
        layer[1, :, :, start:end] = v.detach()
        if layer_index == self.config.num_hidden_layers - 1:
            self.length = end
        if k.requires_grad or v.requires_grad:
            past = layer[..., :start, :].to(k.dtype)
            return torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        filled = layer[..., :end, :].to(k.dtype)
        return filled[0], filled[1]


class Cache(Protocol):
    """What a forward pass needs of a cache: KeyValueCache has it, and so have transformers' caches."""

    def get_seq_length(self, layer_idx: int = 0) -> Any: ...

    def update(
        self, k: Tensor, v: Tensor, layer_idx: int, cache_kwargs: Any = None
    ) -> tuple[Tensor, Tensor]: ...


def one_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """The cache given by either of its names. Raises ValueError for both, TypeError for no cache."""
    if cache is not None and past_key_values is not None:
        raise ValueError("cache and past_key_values are both given; expected one of them")
    given = past_key_values if cache is None else cache
    if given is not None and not (hasattr(given, "update") and hasattr(given, "get_seq_length")):
        raise TypeError(
            f"the cache is a {type(given).__name__}; expected a KeyValueCache, or a Cache of transformers"
        )
    return given

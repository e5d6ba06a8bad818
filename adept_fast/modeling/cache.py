"""KeyValueCache: a static cache with its filled length, for forward passes."""

from __future__ import annotations

import torch
from torch import Tensor

from adept_fast.arguments import ParameterError, integer
from adept_fast.config import PersimmonConfig
from adept_fast.kv_cache import StaticKVCache
from adept_fast.system.short_text import short_repr


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
        config: PersimmonConfig,
        *,
        max_batch_size: int,
        max_seq_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if not isinstance(config, PersimmonConfig):
            raise ParameterError(f"config is {short_repr(config)}; expected a PersimmonConfig")
        max_batch_size = integer("max_batch_size", max_batch_size, 1)
        max_seq_len = integer("max_seq_len", max_seq_len, 1)
        self.config = config
        self.length = 0  # positions of each row that are filled
        self._store = StaticKVCache(
            config, max_batch_size=max_batch_size, max_seq_len=max_seq_len, dtype=dtype, device=device
        )

    def __len__(self) -> int:
        return self.config.num_hidden_layers

    def get_seq_length(self, layer_index: int = 0) -> int:
        """The number of filled positions of each row."""
        return self.length

    def crop(self, length: int) -> None:
        """Keep the first ``length`` positions; a negative length removes as many positions at the end."""
        length = integer("length", length, -self.length, self.length)
        self.length = length if length >= 0 else self.length + length

    def make_room(self, batch: int, tokens: int) -> None:
        """Grow if ``tokens`` more positions do not fit. Raises ValueError for a batch of another size."""
        store = self._store
        if batch != store.max_batch_size:
            raise ValueError(f"the batch has {batch} rows; expected {store.max_batch_size} as the cache")
        needed = self.length + tokens
        if needed <= store.max_seq_len:
            return
        self._store = StaticKVCache(
            self.config,
            max_batch_size=batch,
            max_seq_len=max(needed, 2 * store.max_seq_len),
            dtype=store.data.dtype,
            device=store.data.device,
        )
        self._store.data[..., : self.length, :] = store.data[..., : self.length, :]

    def append(self, index: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v [batch, heads, tokens, head_dim] of one layer after the filled positions.

        The length does not change, since every layer appends at the same positions. Returns all keys and
        values in the dtype of ``k``; those of this call carry their gradients.
        """
        layer = self._store.layer(index)  # [k/v, batch, heads, position, head_dim]
        start, end = self.length, self.length + k.shape[2]
        layer[0, :, :, start:end] = k.detach()
        layer[1, :, :, start:end] = v.detach()
        if k.requires_grad or v.requires_grad:
            past = layer[..., :start, :].to(k.dtype)
            return torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        filled = layer[..., :end, :].to(k.dtype)
        return filled[0], filled[1]


def one_cache(cache: KeyValueCache | None, past_key_values: KeyValueCache | None) -> KeyValueCache | None:
    """The cache given by either of its names. Raises ValueError for both."""
    if cache is not None and past_key_values is not None:
        raise ValueError("cache and past_key_values are both given; expected one of them")
    return past_key_values if cache is None else cache

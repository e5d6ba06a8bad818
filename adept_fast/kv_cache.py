"""StaticKVCache: the keys and values of every token so far, in one allocation of fixed shape."""

from __future__ import annotations

import torch
from torch import Tensor

from adept_fast.config import PersimmonConfig


class StaticKVCache:
    """One tensor ``data`` of [layer, k/v, slot, head, position, head_dim].

    A slot holds one sequence. No result depends on positions past a sequence's end, so a slot is reused
    without being cleared. Shape and addresses never change, so a captured graph may keep them.

    Args:
        max_batch_size: number of slots.
        max_seq_len: positions in a slot.
        dtype: float16 (default), bfloat16 or float32.
    """

    def __init__(
        self,
        config: PersimmonConfig,
        *,
        max_batch_size: int,
        max_seq_len: int,
        dtype: torch.dtype = torch.float16,
        device: torch.device | str = "cpu",
    ) -> None:
        self.max_batch_size = max_batch_size
        self.max_seq_len = max_seq_len
        self.data = torch.empty(
            config.num_hidden_layers,
            2,
            max_batch_size,
            config.num_attention_heads,
            max_seq_len,
            config.head_dim,
            dtype=dtype,
            device=device,
        )

    def layer(self, index: int) -> Tensor:
        """The keys and values of one layer: [k/v, slot, head, position, head_dim], a view."""
        return self.data[index]

    def copy_prefix(self, source: int, destination: int, tokens: int) -> None:
        """Copy the keys and values of a slot's first tokens into another slot."""
        self.data[:, :, destination, :, :tokens] = self.data[:, :, source, :, :tokens]


def bytes_per_token(config: PersimmonConfig, dtype: torch.dtype = torch.float16) -> int:
    """The bytes of one position of one slot, over all layers."""
    return config.num_hidden_layers * 2 * config.attention_width * dtype.itemsize

"""Hidden states of a whole sequence, which the model returns chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adept_fast.kv_cache import StaticKVCache
from adept_fast.model import PREFILL_CHUNK, Persimmon, Segment, chunks


def hidden_states(
    model: Persimmon, cache: StaticKVCache, ids: Sequence[int], max_tokens: int = PREFILL_CHUNK
) -> Tensor:
    """float32 [tokens, hidden], read into slot 0 in chunks of at most ``max_tokens``."""
    read = chunks([Segment(0, 0, ids)], max_tokens=min(max_tokens, model.chunk_tokens))
    return torch.cat([model.prefill_chunk(chunk, cache) for chunk in read])

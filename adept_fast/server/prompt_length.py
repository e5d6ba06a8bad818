"""The longest prompts that a context may hold, in characters."""

from __future__ import annotations

import functools

from adept_fast.server.answering import ServedModel
from adept_fast.tokenizer.tokenizer import Tokenizer


def max_characters(model: ServedModel) -> int:
    """The length of the longest text of ``max_seq_len`` tokens: a longer one need not be encoded."""
    return model.max_seq_len * _longest_piece(model.tokenizer)


@functools.lru_cache(maxsize=1)
def _longest_piece(tokenizer: Tokenizer) -> int:
    return max((len(piece) for piece in tokenizer.pieces()), default=1)

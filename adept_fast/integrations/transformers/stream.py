"""Stream: the calls of a streamer, with the tensors that transformers passes to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Stream:
    """A streamer of one ``generate``, which has its prompt; nothing without one.

    In ordinary decoding it gets an int64 tensor [rows] for each token; in assisted decoding, which has one
    row, an int64 tensor [1, tokens] for each step of the model. Both are on the CPU.
    """

    def __init__(self, streamer: Any, assisted: bool) -> None:
        self._streamer = streamer
        self._assisted = assisted
        self._held: list[Tensor] = []  # tokens of the current step

    def put(self, tokens: Tensor, step_ends: bool) -> None:
        """int64 [rows], the next token of each row, and whether none of the same step follow."""
        if self._streamer is None:
            return
        if not self._assisted:
            self._streamer.put(tokens)
            return
        self._held.append(tokens)
        if step_ends:
            self._put_held()

    def end(self) -> None:
        if self._streamer is None:
            return
        if self._held:  # the text ended within a step
            self._put_held()
        self._streamer.end()

    def _put_held(self) -> None:
        tokens = torch.stack(self._held, dim=1)  # [1, tokens]
        self._held.clear()
        self._streamer.put(tokens)

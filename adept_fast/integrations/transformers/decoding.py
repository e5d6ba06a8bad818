"""Decoding of a request, with the order of events and the results of transformers' ``generate``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.utils import GenerateDecoderOnlyOutput

from adept_fast.integrations.transformers.compatibility import CACHE_NAME
from adept_fast.integrations.transformers.request import Request
from adept_fast.integrations.transformers.returned_cache import extend, new_cache
from adept_fast.integrations.transformers.stream import Stream
from adept_fast.integrations.transformers.token_loop import TokenLoop


class Columns:
    """The ids of a batch, which grow by one column per step; earlier views stay valid."""

    def __init__(self, input_ids: Tensor) -> None:
        rows, self._count = input_ids.shape
        self._held = input_ids.new_empty(rows, 2 * self._count + 64)
        self._held[:, : self._count] = input_ids

    @property
    def so_far(self) -> Tensor:
        """int64 [rows, columns], a view."""
        return self._held[:, : self._count]

    def append(self, tokens: Tensor) -> None:
        """int64 [rows]."""
        if self._count == self._held.shape[1]:
            held = torch.empty_like(self._held).repeat(1, 2)
            held[:, : self._count] = self._held
            self._held = held
        self._held[:, self._count] = tokens
        self._count += 1


class Ends:
    """transformers' stopping criteria; the two of almost every call are evaluated without tensors."""

    def __init__(self, criteria: Sequence[Any]) -> None:
        self.max_length: int | None = None
        self._eos: set[int] = set()
        self._others = []
        for criterion in criteria:
            if type(criterion) is EosTokenCriteria:
                self._eos |= set(criterion.eos_token_id.tolist())
            elif type(criterion) is MaxLengthCriteria and self.max_length is None:
                self.max_length = criterion.max_length
            else:
                self._others.append(criterion)
        # Only such a criterion pads texts that have ended.
        self.pads = any(hasattr(criterion, "eos_token_id") for criterion in criteria)

    def of(self, tokens: list[int], so_far: Tensor, scores: Any) -> list[bool]:
        """Whether each row ends with ``tokens``, the last column of ``so_far``."""
        full = self.max_length is not None and so_far.shape[1] >= self.max_length
        ended = [full or token_id in self._eos for token_id in tokens]
        for criterion in self._others:
            # One result per row, or one for all: a bool, or a tensor without dimensions.
            now = torch.tensor(ended, dtype=torch.bool, device=so_far.device) | criterion(so_far, scores)
            ended = [bool(each) for each in now.tolist()]
        return ended


class Details:
    """The requested details of each step: ``scores`` after the processors, ``logits`` before."""

    def __init__(self, generation_config: Any, processors: Any, device: torch.device) -> None:
        self.requested = bool(generation_config.return_dict_in_generate)
        self.scores: Any = () if self.requested and generation_config.output_scores else None
        self.logits: Any = () if self.requested and generation_config.output_logits else None
        self._processors = processors
        self._device = device

    @property
    def of_every_row(self) -> bool:
        """Whether details of all rows are kept, including texts that have ended."""
        return self.scores is not None or self.logits is not None

    def add(self, so_far: Tensor, logits: Tensor) -> None:
        """Keep the logits float32 [rows, vocab] of the step after the columns ``so_far``."""
        if self.scores is not None:
            self.scores += (self._processors(so_far, logits.to(self._device, copy=True)),)
        if self.logits is not None:
            self.logits += (logits.to(self._device, copy=True),)


def decode(
    request: Request,
    loop: TokenLoop,
    ends: Ends,
    processors: Any,
    generation_config: Any,
    stream: Stream,
    dtype: torch.dtype,
) -> Any:
    """Continue the prompts until each has ended; returns the result of transformers' own decoding.

    Args:
        dtype: of the model and of the returned cache.
    """
    device = request.input_ids.device
    details = Details(generation_config, processors, device)
    columns = Columns(request.input_ids)
    pad = int(generation_config._pad_token_tensor) if ends.pads else 0
    going_on = [True] * len(request.starts)
    rows = list(range(len(going_on)))
    cache = request.cache
    if cache is None and details.requested and request.use_cache:
        cache = new_cache()
    past = request.past()  # may raise NotServedError, so before any random number is drawn
    chosen, logits = loop.begin(request.prompts, request.seeded(), request.seen, past)
    while True:
        details.add(columns.so_far, logits)
        tokens = [pad] * len(going_on)
        for row, token_id in zip(rows, chosen, strict=True):
            if going_on[row] or not ends.pads:
                tokens[row] = token_id
        column = torch.tensor(tokens, dtype=torch.int64, device="cpu")  # [rows]
        columns.append(column.to(device))
        ended = ends.of(tokens, columns.so_far, details.scores)
        going_on = [before and not now for before, now in zip(going_on, ended, strict=True)]
        stream.put(column, loop.step_ends)
        if not any(going_on):
            break
        # In transformers, the cache of a text that has ended continues with padding.
        if ends.pads and not details.of_every_row and cache is None:
            rows = [row for row, goes_on in enumerate(going_on) if goes_on]
        chosen, logits = loop.advance(rows, [tokens[row] for row in rows])
    stream.end()
    sequences: Any = columns.so_far.contiguous()
    if cache is not None:
        extend(cache, loop, request.starts, sequences.shape[1] - 1, dtype)  # the last token was not read
    if not details.requested:
        return sequences
    fields = {"scores": details.scores, "logits": details.logits, CACHE_NAME: cache}
    return GenerateDecoderOnlyOutput(sequences=sequences, **fields)

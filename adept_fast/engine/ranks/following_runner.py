"""FollowingRunner: repeats each pass over the weights on the part of another rank than the first.

Ids, slots and positions of decode steps come from the first rank's device with each step, and its choices
stay there. So a follower has no state but its part of the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adept_fast.engine.graphs import CudaGraphRunner, LaunchPolicy
from adept_fast.kv_cache import StaticKVCache
from adept_fast.model import Persimmon, Segment


class FollowingRunner:
    """The counterpart of LeadingRunner: methods of the same names, with the arguments that it tells."""

    def __init__(self, model: Persimmon, cache: StaticKVCache, policy: LaunchPolicy) -> None:
        self._model, self._cache = model, cache
        self._inputs: dict[int, Tensor] = {}  # by the number of rows; captured steps keep the addresses
        self._step_runner = policy.runner(self._step, self._step)

    def prefill(self, segments: list[tuple[int, int, list[int]]]) -> None:
        self._model.prefill_chunk([Segment(*segment) for segment in segments], self._cache)

    def logits(self, rows: int) -> None:
        self._model.logits(self._hidden(rows))

    def all_logits(self, rows: int) -> None:
        self._model.all_logits(self._hidden(rows))

    def copy_prefix(self, source: int, destination: int, tokens: int) -> None:
        self._cache.copy_prefix(source, destination, tokens)

    def launch_step(self, rows: int, length: int) -> None:
        self._step_runner.launch(rows, length)

    def decode_first_token(self, position: int) -> None:
        self._step(1, position + 1)

    def capture_steps(self) -> None:
        if isinstance(self._step_runner, CudaGraphRunner):
            self._step_runner.capture_up_to(self._cache.max_batch_size)

    def _step(self, rows: int, length: int) -> Tensor:
        if rows not in self._inputs:
            self._inputs[rows] = torch.zeros(rows, dtype=torch.int64, device=self._model.device)
        inputs = self._inputs[rows]  # which the first rank's replace
        return self._model.decode_step(inputs, inputs, inputs, self._cache, length)

    def _hidden(self, rows: int) -> Tensor:
        """The first rank's hidden states: float32 [rows, hidden]."""
        shape = rows, self._model.config.hidden_size
        return self._model.ranks.shared(torch.empty(shape, dtype=torch.float32, device=self._model.device))

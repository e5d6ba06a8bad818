"""transformers with its static cache, its step through torch.compile: on a GPU replayed as a CUDA graph."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines.protocol import serve
from benchmarks.baselines.torch_baseline import Compiled, synchronize
from benchmarks.baselines.transformers import TransformersWorker


class TransformersCompiledWorker(Compiled, TransformersWorker):
    def notes(self) -> str:
        attention = self.model.config._attn_implementation
        return f"attention: {attention}, over all that the static cache has room for"

    def function(self) -> Callable[..., Tensor]:
        return self._logits

    def read_chunk(self, ids: Tensor, start: int) -> Tensor:
        if self.cache is None:
            from transformers import StaticCache

            self.cache = StaticCache(config=self.model.config, max_cache_len=self.capacity)
        if start == 0:
            self.rewind(0)
        return self._logits(ids, self.cache)

    def rewind(self, tokens: int) -> bool:
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(tokens)
        return True

    def step(self, ids: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return self.compiled(ids, self.cache)

    def prefill(self, prompt: list[int]) -> dict[str, Any]:
        """Compiled for the prompt's length at the first call."""
        with self.no_grad():
            ids = torch.tensor([prompt], device=self.device)
            self.rewind(0)
            synchronize(self.device)
            started = time.perf_counter()
            self.step(ids).argmax(-1).tolist()
            return {"seconds": time.perf_counter() - started}

    def _logits(self, ids: Tensor, cache: Any) -> Tensor:
        output = self.model(ids, **{self.cache_argument: cache}, use_cache=True, logits_to_keep=1)
        logits: Tensor = output.logits[:, -1]
        return logits


if __name__ == "__main__":
    serve(TransformersCompiledWorker())

"""The same model in plain PyTorch, its step through torch.compile: on a GPU replayed as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.baselines.eager import EagerWorker
from benchmarks.baselines.protocol import serve
from benchmarks.baselines.torch_baseline import Compiled, mark_static


class EagerCompiledWorker(Compiled, EagerWorker):
    def notes(self) -> str:
        return "plain PyTorch through torch.compile; attention over all the cache has room for, masked"

    def function(self) -> Callable[..., Tensor]:
        assert self.model is not None
        return self.model.last_logits

    def read_chunk(self, ids: Tensor, start: int) -> Tensor:
        logits = super().read_chunk(ids, start)
        assert self.cache is not None
        mark_static([*self.cache.keys, *self.cache.values])
        return logits

    def step(self, ids: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        position = torch.full((1,), self.at, device=self.device)
        self.at += 1
        return self.compiled(ids, position, self.cache)


if __name__ == "__main__":
    serve(EagerCompiledWorker())

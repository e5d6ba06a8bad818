"""The same model in plain PyTorch, its step through torch.compile: on a GPU replayed as a CUDA graph."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines.eager import EagerWorker
from benchmarks.baselines.protocol import serve
from benchmarks.baselines.torch_baseline import WARM_UP_STEPS, compiled, mark_static, synchronize


class EagerCompiledWorker(EagerWorker):
    no_grad = torch.no_grad

    def notes(self) -> str:
        return "plain PyTorch through torch.compile; attention over all the cache has room for, masked"

    def warm_up(self) -> dict[str, Any]:
        assert self.model is not None
        started = time.perf_counter()
        torch.compiler.reset()
        self.compiled = compiled(self.model.last_logits, self.device)
        prompt = torch.full((self.batch, 1), 5, device=self.device)
        self.read(prompt)
        assert self.cache is not None
        mark_static([*self.cache.keys, *self.cache.values])
        for _ in range(WARM_UP_STEPS):
            self.step(prompt)
        synchronize(self.device)
        return {"compile_seconds": time.perf_counter() - started}

    def step(self, ids: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        position = torch.full((1,), self.at, device=self.device)
        self.at += 1
        return self.compiled(ids, position, self.cache)


if __name__ == "__main__":
    serve(EagerCompiledWorker())

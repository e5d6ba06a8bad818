"""The same model in plain PyTorch, one layer through torch.compile: all layers run its code.

That takes a fraction of the time of compiling all layers. On a GPU the whole step is captured and replayed as
one CUDA graph, as torch.compile's reduce-overhead does.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.baselines.eager import EagerWorker
from benchmarks.baselines.protocol import serve
from benchmarks.baselines.torch_baseline import WARM_UP_STEPS, synchronize


class EagerCompiledLayerWorker(EagerWorker):
    no_grad = torch.no_grad
    graph: torch.cuda.CUDAGraph | None = None

    def notes(self) -> str:
        return (
            "plain PyTorch, a layer through torch.compile; attention over all the cache has room for, masked"
        )

    def warm_up(self) -> dict[str, Any]:
        started = time.perf_counter()
        torch.compiler.reset()
        self.layer = torch.compile(run_layer, mode=None, fullgraph=True, dynamic=False)
        self.ids = torch.full((self.batch, 1), 5, device=self.device)
        self.position = torch.ones(1, dtype=torch.int64, device=self.device)
        self.read(self.ids)  # makes the cache
        for _ in range(WARM_UP_STEPS):
            self._logits()
        synchronize(self.device)
        if self.device.type == "cuda":
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.replayed = self._logits()
        return {"compile_seconds": time.perf_counter() - started}

    def step(self, ids: Tensor) -> Tensor:
        self.ids.copy_(ids)
        self.position.fill_(self.at)
        self.at += 1
        if self.graph is None:
            return self._logits()
        self.graph.replay()
        return self.replayed

    def _logits(self) -> Tensor:
        """Of ``ids`` at ``position``: [batch, vocab]."""
        assert self.model is not None
        assert self.cache is not None
        decoder = self.model.model
        x = decoder.embed_tokens(self.ids)  # [batch, 1, hidden]
        cos, sin = decoder.rotary(self.position, x.dtype)
        mask = torch.arange(self.capacity, device=self.device) <= self.position[:, None]
        for layer, keys, values in zip(decoder.layers, self.cache.keys, self.cache.values, strict=True):
            x = self.layer(layer, x, cos, sin, self.position, keys, values, self.capacity, mask)
        logits: Tensor = self.model.lm_head(decoder.final_layernorm(x)[:, -1])
        return logits

    def forget_cache(self) -> None:
        super().forget_cache()
        self.graph = None  # which uses it


def run_layer(layer: nn.Module, x: Tensor, *attention: Tensor | int) -> Tensor:
    out: Tensor = layer(x, *attention)
    return out


if __name__ == "__main__":
    serve(EagerCompiledLayerWorker())

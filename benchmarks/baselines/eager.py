"""The same model in plain PyTorch (``eager_model``), run as it is written."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines.eager_model import Cache, Persimmon
from benchmarks.baselines.protocol import serve
from benchmarks.baselines.torch_baseline import TorchBaseline
from benchmarks.models import open_model


class EagerWorker(TorchBaseline):
    model: Persimmon | None = None
    cache: Cache | None = None
    at = 0  # position of the next token

    def hello(self) -> dict[str, Any]:
        return {"versions": {"torch": torch.__version__, "python": platform.python_version()}}

    def load_model(self, checkpoint: Path) -> None:
        self.model = Persimmon.load(open_model(checkpoint, self.device), self.dtype, self.device)

    def notes(self) -> str:
        return "plain PyTorch: nn.Linear and scaled_dot_product_attention over a static cache"

    def read_chunk(self, ids: Tensor, start: int) -> Tensor:
        assert self.model is not None
        if self.cache is None:
            self.cache = Cache(self.model.config, self.batch, self.capacity, self.dtype, self.device)
        self.at = start + ids.shape[1]
        positions = torch.arange(start, self.at, device=self.device)
        return self.model.last_logits(ids, positions, self.cache, self.at)

    def rewind(self, tokens: int) -> bool:
        self.at = tokens
        return True

    def step(self, ids: Tensor) -> Tensor:
        assert self.model is not None
        assert self.cache is not None
        position = torch.full((1,), self.at, device=self.device)
        self.at += 1
        return self.model.last_logits(ids, position, self.cache, self.at)

    def forget_cache(self) -> None:
        super().forget_cache()
        self.cache = None

    def forget_model(self) -> None:
        self.model = None


if __name__ == "__main__":
    serve(EagerWorker())

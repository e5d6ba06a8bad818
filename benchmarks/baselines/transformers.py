"""transformers, eager (not compiled), in a loop of bare forward calls: ``generate`` would only add time."""

from __future__ import annotations

import inspect
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines.protocol import serve
from benchmarks.baselines.torch_baseline import TorchBaseline
from benchmarks.models import is_recipe, open_model


class TransformersWorker(TorchBaseline):
    model: Any = None
    cache: Any = None
    cache_argument = ""  # of the model's forward

    def hello(self) -> dict[str, Any]:
        import transformers

        versions = {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        return {"versions": versions}

    def load_model(self, checkpoint: Path) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        if not is_recipe(checkpoint):
            model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=self.dtype)
            self._use(model)
            return
        config = AutoConfig.from_pretrained(checkpoint)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        drawn = open_model(checkpoint, self.device).tensors
        tensors = {name: stored.read().to(self.dtype) for name, stored in drawn.items()}
        model.load_state_dict(tensors, assign=True)
        # Its buffers are of no checkpoint, so they have to be computed.
        model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
        self._use(model)

    def notes(self) -> str:
        attention = self.model.config._attn_implementation
        return f"attention: {attention}; copies the cache at every step, which is not counted as read"

    def read_chunk(self, ids: Tensor, start: int) -> Tensor:
        if start == 0:
            self.cache = None
        return self._next(ids)

    def step(self, ids: Tensor) -> Tensor:
        return self._next(ids)

    def forget_cache(self) -> None:
        super().forget_cache()
        self.cache = None

    def forget_model(self) -> None:
        self.model = None

    def _use(self, model: Any) -> None:
        # transformers renamed it, so the name is read from its signature.
        accepted = inspect.signature(model.forward).parameters
        self.cache_argument = "cache" if "cache" in accepted else "past_key_values"
        self.model = model.eval().to(self.device)

    def _next(self, ids: Tensor) -> Tensor:
        output = self.model(ids, **{self.cache_argument: self.cache}, use_cache=True, logits_to_keep=1)
        self.cache = output[self.cache_argument]
        logits: Tensor = output.logits[:, -1]
        return logits


if __name__ == "__main__":
    serve(TransformersWorker())

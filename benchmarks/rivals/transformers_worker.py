"""transformers, eager (not compiled), in a loop of bare forward calls: ``generate`` would only add time."""

from __future__ import annotations

import platform
import time
from typing import Any

import torch
from protocol import Worker, cache_elements, matrix_elements, read_config, serve, vector_elements


class TransformersWorker(Worker):
    def hello(self) -> dict[str, Any]:
        import transformers

        versions = {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        return {"versions": versions}

    def load(self, checkpoint: str, format: str, threads: int, context: int, batch: int) -> dict[str, Any]:
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        dtype = getattr(torch, format)
        started = time.perf_counter()
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype).eval()
        config = read_config(checkpoint)
        self.weight_bytes = (matrix_elements(config) + vector_elements(config)) * dtype.itemsize
        self.cache_bytes = cache_elements(config) * dtype.itemsize
        attention = self.model.config._attn_implementation
        return {
            "weight_bytes": self.weight_bytes,
            "load_seconds": time.perf_counter() - started,
            "notes": f"attention: {attention}; copies the cache at every step, which is not counted as read",
        }

    @torch.inference_mode()
    def decode(self, prompts: list[list[int]], steps: int) -> dict[str, Any]:
        ids, cache = self._next(torch.tensor(prompts), None)
        started = time.perf_counter()
        for _ in range(steps):
            ids, cache = self._next(torch.tensor(ids), cache)
        seconds = time.perf_counter() - started
        middle = len(prompts[0]) + steps // 2
        return {
            "seconds": seconds,
            "bytes_per_step": self.weight_bytes + self.cache_bytes * middle * len(prompts),
        }

    @torch.inference_mode()
    def prefill(self, prompt: list[int]) -> dict[str, Any]:
        started = time.perf_counter()
        self._next(torch.tensor([prompt]), None)
        return {"seconds": time.perf_counter() - started}

    def _next(self, ids: torch.Tensor, cache: Any) -> tuple[list[list[int]], Any]:
        output = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1].argmax(-1, keepdim=True).tolist(), output.past_key_values


if __name__ == "__main__":
    serve(TransformersWorker())

"""Ours by its public interface alone, so that any commit of the repository can be timed by this worker."""

from __future__ import annotations

import inspect
import platform
from typing import Any

import torch

import adept_fast
from adept_fast import Runtime, extension
from benchmarks.baselines.protocol import Worker, serve

FLOATS = ("float32", "float16", "bfloat16")


class PublicApiWorker(Worker):
    """Timed by ``Generation.timings``. Its step also turns the token into text and looks for the end."""

    runtime: Runtime | None = None

    def hello(self) -> dict[str, Any]:
        versions = {
            "adept-fast": adept_fast.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        return {"versions": versions, "imported_from": adept_fast.__file__}

    def load(
        self, checkpoint: str, format: str, threads: int, context: int, batch: int, device: str = "cpu"
    ) -> dict[str, Any]:
        torch.set_num_threads(threads)
        self.runtime = load_runtime(checkpoint, format, context, batch, device)
        return {
            "weight_bytes": self.runtime.bytes_read_per_step(0),
            "load_seconds": self.runtime.load_seconds,
            "without_extension": "" if extension.load().loaded else extension.load().reason,
        }

    def decode(self, prompts: list[list[int]], steps: int) -> dict[str, Any]:
        assert self.runtime is not None
        generations = self.runtime.generate(prompts, max_new_tokens=steps + 1, ignore_eos=True)
        # The last prompt is read last, so everything after its first token is steps of all sequences.
        timings = generations[-1].timings
        assert timings.decode_tokens == steps, timings
        middle = len(prompts[-1]) + steps // 2
        weights = self.runtime.bytes_read_per_step(0)
        cache = (self.runtime.bytes_read_per_step(middle) - weights) * len(prompts)
        return {"seconds": timings.decode_seconds, "bytes_per_step": weights + cache}

    def prefill(self, prompt: list[int]) -> dict[str, Any]:
        assert self.runtime is not None
        (generation,) = self.runtime.generate([prompt], max_new_tokens=1, ignore_eos=True)
        return {"seconds": generation.timings.prefill_seconds}


def load_runtime(model: Any, format: str, context: int, batch: int, device: str) -> Runtime:
    """``format``: a dtype, or a format of packed weights. Every prompt is read, also one that came before."""
    has_prefix_cache = "prefix_cache" in inspect.signature(Runtime.load).parameters  # earlier commits do not
    unshared: dict[str, Any] = {"prefix_cache": False} if has_prefix_cache else {}
    return Runtime.load(
        model,
        device=device,
        dtype=format if format in FLOATS else "auto",
        weights=None if format in FLOATS else format,
        max_seq_len=context,
        max_batch_size=batch,
        progress=False,
        **unshared,
    )


if __name__ == "__main__":
    serve(PublicApiWorker())

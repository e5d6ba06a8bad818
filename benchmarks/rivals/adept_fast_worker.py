"""Ours: the public Runtime, as a user would call it. Timed by itself: ``Generation.timings``.

Its step is longer than the rivals': it also turns tokens into text and looks for the end.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from protocol import Absent, Worker, serve

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if TYPE_CHECKING:
    from adept_fast import Runtime


class AdeptFastWorker(Worker):
    runtime: Runtime | None = None
    _loaded: tuple[str, str, str] | None = None

    def hello(self) -> dict[str, Any]:
        import adept_fast

        versions = {
            "adept-fast": adept_fast.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        return {"versions": versions}

    def load(
        self, checkpoint: str, format: str, threads: int, context: int, batch: int, device: str = "cpu"
    ) -> dict[str, Any]:
        from models import is_recipe, open_model

        from adept_fast import InsufficientMemoryError, ParameterError, Runtime, ops
        from adept_fast.quantization.formats import NAMES

        torch.set_num_threads(threads)
        asked = (checkpoint, format, device)
        if not (self._loaded == asked and self._has_room(context, batch)):
            self.runtime = None  # the one before goes first
        packed = format in NAMES
        model = open_model(Path(checkpoint), device) if is_recipe(Path(checkpoint)) else checkpoint
        try:
            self.runtime = self.runtime or Runtime.load(
                model,
                device=device,
                dtype="auto" if packed else format,
                weights=format if packed else None,
                max_seq_len=context,
                max_batch_size=batch,
                progress=False,
            )
            self._loaded = asked
        except (InsufficientMemoryError, ParameterError) as error:
            raise Absent(str(error)) from error
        # The one look behind the public interface: how large the matrices are whose rows may be left out.
        self.down_bytes = sum(
            layer.w_down_t.nbytes for layer in self.runtime.engine.runner.model.weights.layers
        )
        plan = self.runtime.memory()
        return {
            "weight_bytes": self.runtime.bytes_read_per_step(0),
            "resident_bytes": {"weights": plan.weights_bytes, "cache": plan.cache_bytes},
            "load_seconds": self.runtime.load_seconds,
            "operators": {part.operator: part.kind for part in ops.implementations()},
            "notes": "the timed step also turns the token into text",
        }

    def decode(self, prompts: list[list[int]], steps: int) -> dict[str, Any]:
        assert self.runtime is not None
        before = self._unit_rows()
        generations = self.runtime.generate(prompts, max_new_tokens=steps + 1, ignore_eos=True)
        # The last prompt is read last, so from its first token on there is nothing but steps of them all.
        timings = generations[-1].timings
        assert timings.decode_tokens == steps, timings
        middle = len(prompts[-1]) + steps // 2
        weights = self.runtime.bytes_read_per_step(0)
        cache = (self.runtime.bytes_read_per_step(middle) - weights) * len(prompts)
        # A row of the down-projection is read where its unit is not 0 for some sequence of the batch.
        read, rows = (after - at for after, at in zip(self._unit_rows(), before, strict=True))
        zeros = 1 - read / rows if rows else None
        return {
            "seconds": timings.decode_seconds,
            "bytes_per_step": weights - (zeros or 0) * self.down_bytes + cache,
            "dense_bytes_per_step": weights + cache,
            "zero_share": zeros,
        }

    def prefill(self, prompt: list[int]) -> dict[str, Any]:
        assert self.runtime is not None
        (generation,) = self.runtime.generate([prompt], max_new_tokens=1, ignore_eos=True)
        return {"seconds": generation.timings.prefill_seconds}

    def _has_room(self, context: int, batch: int) -> bool:
        """Whether the cache of what is loaded holds this too; what it has beyond is never looked at."""
        runtime = self.runtime
        return runtime is not None and context <= runtime.max_seq_len and batch <= runtime.max_batch_size

    def _unit_rows(self) -> tuple[int, int]:
        """Rows of the down-projections that decode steps read so far, and rows there were."""
        assert self.runtime is not None
        stats = self.runtime.stats()
        return stats.unit_rows_read, stats.unit_rows


if __name__ == "__main__":
    serve(AdeptFastWorker())

"""Ours, with the bytes that a step reads counted: rows of inactive neurons are left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from adept_fast import InsufficientMemoryError, ParameterError, ops
from benchmarks.baselines.protocol import Absent, serve
from benchmarks.baselines.public_api import PublicApiWorker, load_runtime
from benchmarks.models import is_recipe, open_model


class AdeptFastWorker(PublicApiWorker):
    _loaded: tuple[str, str, str] | None = None

    def load(
        self, checkpoint: str, format: str, threads: int, context: int, batch: int, device: str = "cpu"
    ) -> dict[str, Any]:
        torch.set_num_threads(threads)
        wanted = (checkpoint, format, device)
        if not (self._loaded == wanted and self._has_room(context, batch)):
            self.runtime = None  # frees the memory of the one before
        path = Path(checkpoint)
        model = open_model(path, device) if is_recipe(path) else checkpoint
        try:
            self.runtime = self.runtime or load_runtime(model, format, context, batch, device)
        except (InsufficientMemoryError, ParameterError) as error:
            raise Absent(str(error)) from error
        self._loaded = wanted
        # The one look behind the public interface: the size of the matrices whose rows may be left out.
        weights = self.runtime.engine.runner.model.weights
        self.down_bytes = sum(layer.w_down_t.nbytes for layer in weights.layers)
        plan = self.runtime.memory()
        return {
            "weight_bytes": self.runtime.bytes_read_per_step(0),
            "resident_bytes": {"weights": plan.weights_bytes, "cache": plan.cache_bytes},
            "load_seconds": self.runtime.load_seconds,
            "operators": {
                choice.operator: choice.implementation for choice in ops.explain(torch.device(device))
            },
            "notes": "the timed step also turns the token into text",
        }

    def decode(self, prompts: list[list[int]], steps: int) -> dict[str, Any]:
        before = self._unit_rows()
        answer = super().decode(prompts, steps)
        # A row of the down-projection is read if its neuron is active for some sequence of the batch.
        read, rows = (after - at for after, at in zip(self._unit_rows(), before, strict=True))
        zeros = 1 - read / rows if rows else None
        dense = answer["bytes_per_step"]
        return answer | {
            "bytes_per_step": dense - (zeros or 0) * self.down_bytes,
            "dense_bytes_per_step": dense,
            "zero_share": zeros,
        }

    def _has_room(self, context: int, batch: int) -> bool:
        """Whether the cache of the loaded runtime is large enough; steps never look at the rest of it."""
        runtime = self.runtime
        return runtime is not None and context <= runtime.max_seq_len and batch <= runtime.max_batch_size

    def _unit_rows(self) -> tuple[int, int]:
        """Rows of the down-projections that decode steps read so far, and all of their rows."""
        assert self.runtime is not None
        stats = self.runtime.stats()
        return stats.unit_rows_read, stats.unit_rows


if __name__ == "__main__":
    serve(AdeptFastWorker())

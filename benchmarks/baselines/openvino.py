"""OpenVINO: the model as optimum-intel exports it, run by OpenVINO itself in a loop of bare inferences.

Exported once for each format, beside the checkpoint: ``float16`` keeps the weights as they are stored,
``int8`` and ``int4`` compress them as optimum-intel does by default (which leaves lm_head in 8 bits beside
int4). Settings are OpenVINO's own for latency; it may compute in bfloat16
and keep the cache in 8 bits.

    pip install "optimum-intel[openvino]"
"""

from __future__ import annotations

import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.baselines.protocol import Absent, Worker, cache_elements, read_config, serve


class OpenVinoWorker(Worker):
    def hello(self) -> dict[str, Any]:
        import openvino
        import optimum.intel  # noqa: F401 - only to see that it is there
        import transformers

        return {
            "versions": {
                "openvino": openvino.__version__,
                "optimum-intel": version("optimum-intel"),
                "transformers": transformers.__version__,
                "python": platform.python_version(),
            }
        }

    def load(
        self, checkpoint: str, format: str, threads: int, context: int, batch: int, device: str = "cpu"
    ) -> dict[str, Any]:
        import openvino

        if batch > 1:
            raise Absent("this worker decodes one sequence")
        if device != "cpu":
            raise Absent("this worker runs on a CPU")
        exported = Path(checkpoint) / f"openvino-{format}"
        if not exported.exists():
            export(checkpoint, exported, format)
        started = time.perf_counter()
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        compiled = openvino.Core().compile_model(exported / "openvino_model.xml", "CPU", settings)
        self.inputs = {name for port in compiled.inputs for name in port.names}
        self.request = compiled.create_infer_request()
        config = read_config(checkpoint)
        # The file holds the embedding too, in 8 bits if it is compressed; a step reads one row of it.
        embedding = config["vocab_size"] * config["hidden_size"] * (2 if format == "float16" else 1)
        self.weight_bytes = (exported / "openvino_model.bin").stat().st_size - embedding
        precision = compiled.get_property("KV_CACHE_PRECISION")
        self.cache_bytes = cache_elements(config) * precision.size
        computing = compiled.get_property("INFERENCE_PRECISION_HINT")
        return {
            "weight_bytes": self.weight_bytes,
            "load_seconds": time.perf_counter() - started,
            "notes": f"computes in {_type_name(computing)}, cache in {_type_name(precision)}",
        }

    def decode(self, prompts: list[list[int]], steps: int) -> dict[str, Any]:
        (prompt,) = prompts
        self.request.reset_state()
        token = self._next(prompt, 0)
        started = time.perf_counter()
        for at in range(len(prompt), len(prompt) + steps):
            token = self._next([token], at)
        seconds = time.perf_counter() - started
        middle = len(prompt) + steps // 2
        return {"seconds": seconds, "bytes_per_step": self.weight_bytes + self.cache_bytes * middle}

    def prefill(self, prompt: list[int]) -> dict[str, Any]:
        self.request.reset_state()
        started = time.perf_counter()
        self._next(prompt, 0)
        return {"seconds": time.perf_counter() - started}

    def _next(self, ids: list[int], position: int) -> int:
        values = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, position + len(ids)), np.int64),
            "position_ids": np.arange(position, position + len(ids), dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        self.request.infer({name: value for name, value in values.items() if name in self.inputs})
        return int(self.request.get_tensor("logits").data[0, -1].argmax())


def _type_name(kind: Any) -> str:
    return kind.get_type_name()


def export(checkpoint: str, destination: Path, format: str) -> None:
    """Convert by optimum-intel; the directory appears when it is complete."""
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    options: dict[str, Any] = {"load_in_8bit": False}
    if format != "float16":
        options = {"quantization_config": OVWeightQuantizationConfig(bits=int(format.removeprefix("int")))}
    model = OVModelForCausalLM.from_pretrained(checkpoint, export=True, compile=False, **options)
    unfinished = destination.with_name(destination.name + ".unfinished")
    model.save_pretrained(unfinished)
    unfinished.rename(destination)


if __name__ == "__main__":
    serve(OpenVinoWorker())

"""llama.cpp, through llama-cpp-python's thin binding of its C functions: llama_decode and an argmax by NumPy.

Settings are llama.cpp's own: a float16 cache, flash attention and weights repacked for the CPU as it chooses.
Build it for this machine, as our kernels are chosen for it:

    CMAKE_ARGS="-DGGML_NATIVE=ON" pip install llama-cpp-python --no-binary llama-cpp-python
    pip install gguf torch safetensors
"""

from __future__ import annotations

import ctypes
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.baselines.protocol import Absent, Worker, cache_elements, read_config, serve


class LlamaCppWorker(Worker):
    model: Any = None

    def hello(self) -> dict[str, Any]:
        import gguf  # noqa: F401 - only to see that it is there
        import llama_cpp

        llama_cpp.llama_log_set(_quiet, ctypes.c_void_p())
        features = llama_cpp.llama_print_system_info().decode()
        return {
            "versions": {
                "llama-cpp-python": llama_cpp.__version__,
                "llama.cpp": features,
                "gguf": version("gguf"),
                "python": platform.python_version(),
            }
        }

    def load(
        self, checkpoint: str, format: str, threads: int, context: int, batch: int, device: str = "cpu"
    ) -> dict[str, Any]:
        import llama_cpp
        from safetensors import safe_open

        from benchmarks.baselines.nemotron_gguf import gguf_names, gguf_of, tensor_bytes

        if batch > 1:
            raise Absent("this worker decodes one sequence")
        if device != "cpu":
            raise Absent("this worker runs on a CPU")
        self._release()
        source = Path(checkpoint)
        path = gguf_of(source, format)
        started = time.perf_counter()
        llama_cpp.llama_backend_init()
        self.llama = llama_cpp
        model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        if not model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch = context, context
        settings.n_threads = settings.n_threads_batch = threads
        self.model = model
        self.context = llama_cpp.llama_init_from_model(model, settings)
        self.memory = llama_cpp.llama_get_memory(self.context)
        config = read_config(checkpoint)
        self.vocab = config["vocab_size"]
        with safe_open(source / "model.safetensors", framework="pt") as file:
            self.weight_bytes = sum(
                tensor_bytes(tuple(file.get_slice(name).get_shape()), format)
                for name, gguf_name in gguf_names(file.keys())
                if not gguf_name.startswith("token_embd")
            )
        self.cache_bytes = cache_elements(config) * 2
        return {
            "weight_bytes": self.weight_bytes,
            "load_seconds": time.perf_counter() - started,
            "notes": "Nemotron of the same shapes: no LayerNorm of queries and keys",
        }

    def decode(self, prompts: list[list[int]], steps: int) -> dict[str, Any]:
        (prompt,) = prompts
        self.llama.llama_memory_clear(self.memory, True)
        token = self._next(prompt)
        started = time.perf_counter()
        for _ in range(steps):
            token = self._next([token])
        seconds = time.perf_counter() - started
        middle = len(prompt) + steps // 2
        return {"seconds": seconds, "bytes_per_step": self.weight_bytes + self.cache_bytes * middle}

    def prefill(self, prompt: list[int]) -> dict[str, Any]:
        self.llama.llama_memory_clear(self.memory, True)
        started = time.perf_counter()
        self._next(prompt)
        return {"seconds": time.perf_counter() - started}

    def _release(self) -> None:
        """Free what an earlier load allocated."""
        if self.model is not None:
            self.llama.llama_free(self.context)
            self.llama.llama_model_free(self.model)
            self.model = None

    def _next(self, ids: list[int]) -> int:
        tokens = (self.llama.llama_token * len(ids))(*ids)
        if self.llama.llama_decode(self.context, self.llama.llama_batch_get_one(tokens, len(ids))):
            raise RuntimeError("llama_decode failed")
        logits = np.ctypeslib.as_array(self.llama.llama_get_logits_ith(self.context, -1), (self.vocab,))
        return int(logits.argmax())


def _no_log(level: int, text: bytes, data: Any) -> None:
    """llama.cpp logs hundreds of lines at every load."""


try:
    import llama_cpp as _llama_cpp

    _quiet = _llama_cpp.llama_log_callback(_no_log)  # kept: C code goes on calling it
except ImportError:  # hello() reports it
    _quiet = None


if __name__ == "__main__":
    serve(LlamaCppWorker())

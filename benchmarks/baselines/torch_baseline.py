"""Baselines that are PyTorch models: the device, its clock, a loop of steps, and its limits."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines.protocol import (
    Absent,
    Worker,
    cache_elements,
    matrix_elements,
    read_config,
    vector_elements,
)

WARM_UP_STEPS = 3  # a compiled step is traced, recorded and replayed in as many
CHUNK = 16384  # tokens of all prompts together that are read at once, which bounds their activations


class TorchBaseline(Worker):
    """A subclass makes the steps; ids stay on the device, and the host waits for none."""

    no_grad: Any = torch.inference_mode

    def load(
        self, checkpoint: str, format: str, threads: int, context: int, batch: int, device: str = "cpu"
    ) -> dict[str, Any]:
        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32 = False  # float32 is float32, as everywhere else
        dtype = getattr(torch, format)
        wanted = (checkpoint, format, device)
        started = time.perf_counter()
        self.forget_cache()
        if getattr(self, "_loaded", None) != wanted:
            self._loaded: tuple[str, str, str] | None = None
            self.forget_model()
        self.device, self.dtype, self.config = torch.device(device), dtype, read_config(checkpoint)
        self.batch, self.capacity = batch, context
        self.weight_bytes = (matrix_elements(self.config) + vector_elements(self.config)) * dtype.itemsize
        self.cache_bytes = cache_elements(self.config) * dtype.itemsize
        self._check_room(held=self._loaded is not None)
        try:
            if self._loaded is None:
                self.load_model(Path(checkpoint))
                self._loaded = wanted
            loaded = time.perf_counter()
            with self.no_grad():
                facts = self.warm_up()
        except torch.OutOfMemoryError as error:
            raise Absent(f"out of memory: {str(error).splitlines()[0]}") from error
        return {
            "weight_bytes": self.weight_bytes,
            "load_seconds": loaded - started,
            "notes": self.notes(),
            **facts,
        }

    def decode(self, prompts: list[list[int]], steps: int) -> dict[str, Any]:
        with self.no_grad():
            ids = torch.tensor(prompts, device=self.device)  # [batch, tokens]
            seconds = timed(self.device, steps, self.steps_after(ids))
        middle = len(prompts[0]) + steps // 2
        return {
            "seconds": seconds,
            "bytes_per_step": self.weight_bytes + self.cache_bytes * middle * len(prompts),
        }

    def prefill(self, prompt: list[int]) -> dict[str, Any]:
        with self.no_grad():
            ids = torch.tensor([prompt], device=self.device)
            synchronize(self.device)
            started = time.perf_counter()
            self.read(ids).argmax(-1).tolist()
            return {"seconds": time.perf_counter() - started}

    def load_model(self, checkpoint: Path) -> None:
        raise NotImplementedError

    def notes(self) -> str:
        raise NotImplementedError

    def warm_up(self) -> dict[str, Any]:
        """Run steps that cost more than later ones; returns facts for the report."""
        return {}

    def read(self, ids: Tensor) -> Tensor:
        """Start with these prompts [batch, tokens], all of one length; logits after them [batch, vocab]."""
        start = 0
        for chunk in ids.split(max(1, CHUNK // len(ids)), dim=1):
            logits = self.read_chunk(chunk, start)
            start += chunk.shape[1]
        return logits

    def read_chunk(self, ids: Tensor, start: int) -> Tensor:
        """The tokens that stand from ``start`` on; 0 is a new beginning."""
        raise NotImplementedError

    def rewind(self, tokens: int) -> bool:
        """Keep the first ``tokens`` of the cache, so that a prompt is not read again; False if it must be."""
        return False

    def step(self, ids: Tensor) -> Tensor:
        """One more token of each, [batch, 1]; logits [batch, vocab]."""
        raise NotImplementedError

    def forget_cache(self) -> None:
        """Free what belongs to one batch and one context."""
        self._prompt: Tensor | None = None
        self._first: Tensor | None = None

    def forget_model(self) -> None:
        """Free the weights too."""

    def steps_after(self, prompt: Tensor) -> Callable[[], None]:
        """Read the prompts, unless they are those of the last time; then each call is a step."""
        known = self._prompt is not None and torch.equal(self._prompt, prompt)
        if not (known and self.rewind(prompt.shape[1])):
            self._prompt = None
            self._first = self.read(prompt).argmax(-1, keepdim=True)  # [batch, 1]
            self._prompt = prompt
        assert self._first is not None
        ids: Tensor = self._first

        def step() -> None:
            nonlocal ids
            ids = self.step(ids).argmax(-1, keepdim=True)

        return step

    def _check_room(self, held: bool) -> None:
        """Raises Absent if weights and cache do not fit, before the machine runs out of memory."""
        embedding = self.config["vocab_size"] * self.config["hidden_size"] * self.dtype.itemsize
        needed = self.cache_bytes * self.capacity * self.batch
        needed += 0 if held else self.weight_bytes + embedding
        room = free_bytes(self.device)
        if needed > room:
            raise Absent(f"it takes {needed / 1e9:.1f} GB more, and {room / 1e9:.1f} GB are free")


class Compiled(TorchBaseline):
    """Its step goes through torch.compile: a subclass names what is compiled, and calls ``compiled``."""

    no_grad = torch.no_grad
    compiled: Callable[..., Tensor]

    def function(self) -> Callable[..., Tensor]:
        """The function of a step."""
        raise NotImplementedError

    def warm_up(self) -> dict[str, Any]:
        started = time.perf_counter()
        torch.compiler.reset()
        self.compiled = compiled(self.function(), self.device)
        prompt = torch.full((self.batch, 1), 5, device=self.device)
        self.read(prompt)
        for _ in range(WARM_UP_STEPS):
            self.step(prompt)
        synchronize(self.device)
        return {"compile_seconds": time.perf_counter() - started}


def timed(device: torch.device, steps: int, step: Callable[[], None]) -> float:
    """Seconds of ``steps`` calls; on a GPU between two events of its stream."""
    if device.type != "cuda":
        started = time.perf_counter()
        for _ in range(steps):
            step()
        return time.perf_counter() - started
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    synchronize(device)
    before.record()
    for _ in range(steps):
        step()
    after.record()
    after.synchronize()
    return 1e-3 * float(before.elapsed_time(after))


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_bytes(device: torch.device) -> int:
    """Of the device's memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))


def compiled(function: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    """By torch.compile, as one graph; on a GPU also as a CUDA graph."""
    mode = "reduce-overhead" if device.type == "cuda" else None
    result: Callable[..., Tensor] = torch.compile(function, mode=mode, fullgraph=True, dynamic=False)
    return result


def mark_static(tensors: list[Tensor]) -> None:
    """Let compiled code write these tensors in place: otherwise it makes no CUDA graph."""
    for tensor in tensors:
        torch._dynamo.mark_static_address(tensor)

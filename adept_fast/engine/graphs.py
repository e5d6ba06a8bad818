"""Launching decode steps: captured once into CUDA graphs and replayed, or eagerly.

A step is hundreds of kernels, and a graph launches them at once. A graph replays fixed addresses and sizes,
so steps come in a few shapes (``GraphBuckets``). On the device, a step skips rows without a sequence and
positions past a sequence's end.
"""

from __future__ import annotations

import contextlib
import gc
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from adept_fast.memory.graph_buckets import BATCH_SIZES, MIN_LENGTH, GraphBuckets

CUDA_GRAPHS = ("auto", "required", "off")

Step = Callable[[int, int], Tensor]  # rows, length → logits float32 [rows, vocab]


class CaptureError(RuntimeError):
    """A decode step could not be captured, and was required to be."""


class StepRunner(Protocol):
    """Launches decode steps."""

    buckets: GraphBuckets

    def launch(self, rows: int, length: int) -> Tensor:
        """Queue a step of a shape of ``buckets``.

        Returns its logits, float32 [rows, vocab], valid until the next step.
        """
        ...


class EagerRunner:
    """Launches a step operator by operator."""

    def __init__(self, step: Step, buckets: GraphBuckets) -> None:
        self.buckets = buckets
        self.launch = step


@dataclass(frozen=True)
class Captured:
    """A captured step, and the logits that each replay overwrites."""

    replay: Callable[[], None]
    logits: Tensor


class Capture(Protocol):
    """Captures steps."""

    bytes_held: int  # by all steps that were captured

    def __call__(self, warmup: Callable[[], Tensor], step: Callable[[], Tensor]) -> Captured: ...


@dataclass
class CaptureReport:
    """The cost of capturing so far; ``failure`` is the reason if steps are launched eagerly instead."""

    shapes: list[tuple[int, int]] = field(default_factory=list)  # (rows, length)
    seconds: float = 0.0
    bytes_held: int = 0
    failure: str | None = None


class CudaGraphRunner:
    """Captures a step when a shape is first needed, and replays it from then on.

    Args:
        step: the step that is captured.
        warmup: the same step on rows without sequences, which changes no state. It runs before each capture,
            since libraries initialise themselves at their first call.
        required: a capture that fails raises CaptureError. Otherwise steps are launched eagerly from then on,
            with one warning.
    """

    def __init__(
        self, step: Step, warmup: Step, buckets: GraphBuckets, capture: Capture, *, required: bool = False
    ) -> None:
        self.buckets = buckets
        self.report = CaptureReport()
        self._step = step
        self._warmup = warmup
        self._capture = capture
        self._required = required
        self._captured: dict[tuple[int, int], Captured] = {}

    def launch(self, rows: int, length: int) -> Tensor:
        captured = self._captured.get((rows, length)) or self._capture_shape(rows, length)
        if captured is None:
            return self._step(rows, length)
        captured.replay()
        return captured.logits

    def capture_up_to(self, rows: int) -> None:
        """Capture now all shapes that steps of up to ``rows`` rows need."""
        max_rows, _ = self.buckets.fitting(rows, 1)
        # The largest first: the smaller ones reuse its memory.
        for size in reversed([size for size in self.buckets.batch_sizes if size <= max_rows]):
            for length in reversed(self.buckets.lengths):
                if (size, length) not in self._captured:
                    self._capture_shape(size, length)

    def _capture_shape(self, rows: int, length: int) -> Captured | None:
        if self.report.failure is not None:
            return None
        started = time.perf_counter()
        try:
            captured = self._capture(lambda: self._warmup(rows, length), lambda: self._step(rows, length))
        except RuntimeError as error:
            # If memory ran out, an eager step would not fit either. CUDA reports it in the message only.
            if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error):
                raise
            self._fail(rows, length, error)
            return None
        self._captured[rows, length] = captured
        self.report.shapes.append((rows, length))
        self.report.seconds += time.perf_counter() - started
        self.report.bytes_held = self._capture.bytes_held
        return captured

    def _fail(self, rows: int, length: int, error: RuntimeError) -> None:
        reason = f"a decode step of {rows} rows over {length} positions could not be captured: {error}"
        if self._required:
            raise CaptureError(reason) from error
        self.report.failure = reason
        warnings.warn(f"{reason}; steps are launched operator by operator", RuntimeWarning, stacklevel=3)


def launch_description(device: torch.device, cuda_graphs: str = "auto") -> str:
    """How steps are launched on a device, for a user to read."""
    if device.type != "cuda":
        return "eagerly (a CPU has no graphs)"
    if cuda_graphs == "off":
        return "operator by operator"
    sizes = ", ".join(map(str, BATCH_SIZES))
    return f"as CUDA graphs, for {sizes} rows and from {MIN_LENGTH} positions on their doublings"


@dataclass(frozen=True)
class LaunchPolicy:
    """How a ModelRunner launches its steps.

    ``capture`` is None for eager steps. ``steps_in_flight`` is how many steps may be launched before the
    first of them is read.
    """

    buckets: GraphBuckets
    steps_in_flight: int
    capture: Capture | None = None
    required: bool = False

    @classmethod
    def on(
        cls, device: torch.device, max_rows: int, max_seq_len: int, cuda_graphs: str = "auto"
    ) -> LaunchPolicy:
        """On a GPU graphs, unless they are ``off``, and one step read behind; eager steps on a CPU."""
        if device.type != "cuda":
            return cls(GraphBuckets.all(max_rows, max_seq_len), steps_in_flight=1)
        if cuda_graphs == "off":
            return cls(GraphBuckets.all(max_rows, max_seq_len), steps_in_flight=2)
        few = GraphBuckets.few(max_rows, max_seq_len)
        return cls(few, 2, CudaCapture(device), required=cuda_graphs == "required")

    def runner(self, step: Step, warmup: Step) -> StepRunner:
        """Launches ``step``; ``warmup`` is the same step on rows without sequences."""
        if self.capture is None:
            return EagerRunner(step, self.buckets)
        return CudaGraphRunner(step, warmup, self.buckets, self.capture, required=self.required)


class CudaCapture:
    """Captures into CUDA graphs that share one memory pool: they run one after the other."""

    def __init__(self, device: torch.device) -> None:
        self.bytes_held = 0
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, warmup: Callable[[], Tensor], step: Callable[[], Tensor]) -> Captured:
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                warmup()
            torch.cuda.synchronize()
            free_before, _ = torch.cuda.mem_get_info()
            graph = torch.cuda.CUDAGraph()
            # What other threads do meanwhile does not concern this capture.
            mode = "thread_local"
            with (
                no_collection(),
                torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode=mode),
            ):
                logits = step()
            free_after, _ = torch.cuda.mem_get_info()
        self.bytes_held += max(0, free_before - free_after)
        return Captured(graph.replay, logits)


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Keep the garbage collector out: it could free the graphs of another runtime, which ends a capture."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

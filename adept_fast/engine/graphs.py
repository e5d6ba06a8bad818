"""Decode steps of fixed shapes: captured once into CUDA graphs and replayed, or launched as they are.

A step is hundreds of kernels, and a graph launches them at once. It replays addresses and sizes, so a step
comes in few shapes: so many rows, over so many positions at most; rows without a sequence and positions past
its end are left out on the device.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from adept_fast.graph_buckets import BATCH_SIZES, MIN_LENGTH, GraphBuckets

CUDA_GRAPHS = ("auto", "required", "off")

Step = Callable[[int, int], Tensor]  # rows, length → logits [rows, vocab]


class CaptureError(RuntimeError):
    """A decode step could not be captured, and was required to be."""


class Steps(Protocol):
    """How decode steps are launched."""

    shapes: GraphBuckets

    def launch(self, rows: int, length: int) -> Tensor:
        """Queue a step of one of ``shapes``; its logits, float32 [rows, vocab], until the next step."""
        ...


class EagerSteps:
    """Steps that are launched operator by operator."""

    def __init__(self, step: Step, shapes: GraphBuckets) -> None:
        self.shapes = shapes
        self.launch = step


@dataclass(frozen=True)
class Captured:
    """A step that can be replayed, and the logits that each replay overwrites."""

    replay: Callable[[], None]
    logits: Tensor


class Capture(Protocol):
    """What can capture a step."""

    bytes_held: int  # by what was captured

    def __call__(self, warm_up: Callable[[], Tensor], step: Callable[[], Tensor]) -> Captured: ...


@dataclass
class CaptureReport:
    """What capturing has taken so far; ``failure`` says why steps are launched one by one after all."""

    shapes: list[tuple[int, int]] = field(default_factory=list)  # (rows, length)
    seconds: float = 0.0
    bytes_held: int = 0
    failure: str | None = None


class DecodeGraphs:
    """Steps that are captured when they are first needed, and replayed from then on.

    Args:
        step: what is captured. rehearse: the same on rows without sequences, which changes nothing; it runs
            before each capture, as libraries set themselves up at their first call.
        required: a capture that fails raises CaptureError; else steps are launched eagerly from then on,
            which is said once.
    """

    def __init__(
        self, step: Step, rehearse: Step, shapes: GraphBuckets, capture: Capture, *, required: bool = False
    ) -> None:
        self.shapes = shapes
        self.report = CaptureReport()
        self._step = step
        self._rehearse = rehearse
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
        """Capture now what steps of up to so many rows will need."""
        most, _ = self.shapes.fitting(rows, 1)
        # The largest first: the smaller ones find room in its memory.
        for size in reversed([size for size in self.shapes.batch_sizes if size <= most]):
            for length in reversed(self.shapes.lengths):
                if (size, length) not in self._captured:
                    self._capture_shape(size, length)

    def _capture_shape(self, rows: int, length: int) -> Captured | None:
        if self.report.failure is not None:
            return None
        started = time.perf_counter()
        try:
            captured = self._capture(lambda: self._rehearse(rows, length), lambda: self._step(rows, length))
        except RuntimeError as error:
            # Where memory ran out, launched one by one the step would not fit either. CUDA says so in words.
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


def launched_in_words(device: torch.device, cuda_graphs: str = "auto") -> str:
    """How steps are launched on a device."""
    if device.type != "cuda":
        return "as they are (a CPU has no graphs)"
    if cuda_graphs == "off":
        return "operator by operator"
    sizes = ", ".join(map(str, BATCH_SIZES))
    return f"as CUDA graphs, for {sizes} rows and from {MIN_LENGTH} positions on their doublings"


@dataclass(frozen=True)
class Launching:
    """How a loop is to launch its steps: ``steps`` makes Steps of a step, and of one that changes nothing.

    ``captured``: the host may decide nothing within a step. ``steps_in_flight``: how many may be launched
    before the first of them is read.
    """

    steps: Callable[[Step, Step], Steps]
    captured: bool
    steps_in_flight: int

    @classmethod
    def on(
        cls, device: torch.device, max_rows: int, max_seq_len: int, cuda_graphs: str = "auto"
    ) -> Launching:
        """What suits a device: on a GPU graphs, unless they are ``off``, and one step read behind."""
        if device.type != "cuda":
            return cls.eager(GraphBuckets.all(max_rows, max_seq_len), steps_in_flight=1)
        if cuda_graphs == "off":
            return cls.eager(GraphBuckets.all(max_rows, max_seq_len), steps_in_flight=2)
        return cls.graphs(
            GraphBuckets.few(max_rows, max_seq_len), CudaCapture(device), required=cuda_graphs == "required"
        )

    @classmethod
    def eager(cls, shapes: GraphBuckets, *, steps_in_flight: int) -> Launching:
        return cls(lambda step, rehearse: EagerSteps(step, shapes), False, steps_in_flight)

    @classmethod
    def graphs(
        cls, shapes: GraphBuckets, capture: Capture, *, required: bool = False, steps_in_flight: int = 2
    ) -> Launching:
        def steps(step: Step, rehearse: Step) -> Steps:
            return DecodeGraphs(step, rehearse, shapes, capture, required=required)

        return cls(steps, True, steps_in_flight)


class CudaCapture:
    """Captures into CUDA graphs that share one memory pool: they run one after the other."""

    def __init__(self, device: torch.device) -> None:
        self.bytes_held = 0
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, warm_up: Callable[[], Tensor], step: Callable[[], Tensor]) -> Captured:
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                warm_up()
            torch.cuda.synchronize()
            free_before, _ = torch.cuda.mem_get_info()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                logits = step()
            free_after, _ = torch.cuda.mem_get_info()
        self.bytes_held += max(0, free_before - free_after)
        return Captured(graph.replay, logits)

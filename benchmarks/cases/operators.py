"""Each fused operator against the chain of torch calls that it stands for, at a model's shapes.

    python -m benchmarks operators --output benchmarks/results/device_option/operators-8b.json

Ours in every format of weights, torch in float16 and bfloat16; those of one operator take turns. The weights
are the same tensors, in huge pages on a CPU; as many sets of them take turns as the last cache cannot hold.
``bytes_per_step`` is what ours has to read, rows of zeros left out, and what torch has to, all of them.
``times_as_fast`` is against torch in the same dtype, for packed weights against bfloat16. ``sample`` is not
among them: on a CPU it is torch itself, and on a GPU benchmarks/step times it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click
import torch
from tqdm import tqdm

from adept_fast.memory.bandwidth import BandwidthProbe
from benchmarks.cases.operator_calls import FORMATS, OF_PROMPTS, OPERATORS, TORCH_DTYPES, Call, Operands
from benchmarks.machine import last_level_cache_bytes
from benchmarks.options import (
    SPEED,
    choose_device,
    device_option,
    print_figures,
    sampling_options,
    take_arguments,
)
from benchmarks.result_file import describe_run, write_report
from benchmarks.samples import Job, figures, sample_in_turn, speedups
from benchmarks.workers import OURS
from tools.random_checkpoint import PRESETS, make_config

MOST_COPIES = 64  # sets of operands: enough for all but toy shapes
MOST_BYTES = 4_000_000_000  # of the sets of one operand
PACKED_AGAINST = "bfloat16"


@click.command()
@click.option("--model", default="8b", show_default=True, type=click.Choice(list(PRESETS)))
@click.option(
    "--operator",
    "names",
    multiple=True,
    default=OPERATORS,
    type=click.Choice((*OPERATORS, *OF_PROMPTS)),
    help="[default: those of a decode step]",
)
@click.option(
    "--format", "formats", multiple=True, type=click.Choice(("float32", *FORMATS["cuda"], *FORMATS["cpu"]))
)
@click.option("--tokens", multiple=True, default=(1,), show_default=True, type=click.IntRange(1, 16))
@click.option("--zeros", default=0.9, show_default=True, type=click.FloatRange(0, 1, max_open=True))
@click.option("--positions", default=1024, show_default=True, type=click.IntRange(min=1), help="Attended to.")
@device_option()
@click.option(
    "--shortest-sample", default=0.1, show_default=True, type=click.FloatRange(min=0), help="Seconds."
)
@sampling_options()
def main(
    model: str,
    names: tuple[str, ...],
    formats: tuple[str, ...],
    tokens: tuple[int, ...],
    zeros: float,
    positions: int,
    device: str,
    shortest_sample: float,
    **options: Any,
) -> None:
    """Time the operators."""
    arguments, place = take_arguments(options), choose_device(device)
    measured: dict[str, Any] = {}
    compared: dict[str, Any] = {}
    config = make_config(**PRESETS[model], context=positions)
    probe = BandwidthProbe(place)
    for name in tqdm(names, desc="operators", disable=None):
        for count in tokens:
            operands = Operands(config, place, tokens=count, zeros=zeros, positions=positions)
            jobs = jobs_of(operands, name, formats or FORMATS[place.type], place, shortest_sample)
            taken, dropped = sample_in_turn(jobs, arguments.samples, arguments.limits, probe)
            label = f"{name}, {count} token{'s' if count > 1 else ''}"
            compared[label] = speedups(taken, OURS)
            for job, collected in taken.items():
                values = figures(collected, dropped[job])
                values["times_as_fast"] = against_torch(job, compared[label])
                measured[f"{label}: {job}"] = {key: v for key, v in values.items() if v is not None}
    report = describe_run("operators", arguments.samples, arguments.threads, place) | {
        "model": PRESETS[model],
        "zeros": zeros,
        "positions": positions,
        "measured": measured,
        "ratios": compared,
    }
    columns = {name: SPEED[name] for name in ("ms/step", "share")}
    columns |= {"MB": ("bytes_per_step", 1e-6, ".1f"), "times as fast": ("times_as_fast", 1.0, ".2f")}
    print_figures(measured, columns=columns)
    write_report(report, arguments.output)


def jobs_of(
    operands: Operands, name: str, formats: tuple[str, ...], device: torch.device, shortest_sample: float
) -> dict[str, Job]:
    """``adept-fast:int8`` → its job."""
    wanted = [(OURS, fmt) for fmt in operands.formats_of(name, formats)]
    wanted += [("torch", dtype) for dtype in TORCH_DTYPES]
    jobs = {}
    for who, fmt in wanted:
        first = operands.call(name, who, fmt, 0)
        copies = 1
        if first.streams:
            copies = copies_beyond(cache_bytes(device), max(1, first.bytes_read), MOST_BYTES)
            copies = min(copies, MOST_COPIES)
        calls = [first, *(operands.call(name, who, fmt, number) for number in range(1, copies))]
        jobs[f"{who}:{fmt}"] = Job(Timed(calls, device, shortest_sample))
    return jobs


def cache_bytes(device: torch.device) -> int:
    """Of the last cache before memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    return last_level_cache_bytes()


class Timed:
    """Calls in turn, again and again, until a sample is long enough to be timed; seconds of one of them.

    On a GPU all of them are one graph that is replayed, so that the host's part is in no figure.
    """

    def __init__(self, calls: list[Call], device: torch.device, shortest_seconds: float) -> None:
        self._calls = calls
        self._device = device
        self._shortest = shortest_seconds
        self._rounds = 0
        self._run_all: Callable[[], None] = self._call_all

    @torch.inference_mode()
    def __call__(self) -> dict[str, Any]:
        if self._rounds == 0:  # the first time is to warm up, too
            self._seconds(1)
            if self._device.type == "cuda":
                self._run_all = captured(self._call_all)
                self._seconds(1)
            self._rounds = max(1, round(self._shortest / self._seconds(1)))
        seconds = self._seconds(self._rounds) / (self._rounds * len(self._calls))
        taken = {
            "seconds_per_step": seconds,
            "sets_of_operands": len(self._calls),
            "calls_per_sample": self._rounds * len(self._calls),
        }
        return taken | ({"bytes_per_step": self._calls[0].bytes_read} if self._calls[0].streams else {})

    def _call_all(self) -> None:
        for call in self._calls:
            call.run()

    def _seconds(self, rounds: int) -> float:
        timed = seconds_on_gpu if self._device.type == "cuda" else seconds_on_cpu
        return timed(self._run_all, rounds)


def captured(run: Callable[[], None]) -> Callable[[], None]:
    """Replays a graph of all kernels that ``run`` launches."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def seconds_on_cpu(run: Callable[[], None], rounds: int) -> float:
    started = time.perf_counter()
    for _ in range(rounds):
        run()
    return time.perf_counter() - started


def seconds_on_gpu(run: Callable[[], None], rounds: int) -> float:
    """By events, with nothing in between that waits."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(rounds):
        run()
    end.record()
    torch.cuda.synchronize()
    return 1e-3 * float(begin.elapsed_time(end))


def against_torch(job: str, compared: dict[str, Any]) -> dict[str, float] | None:
    """How many times as fast ours is as torch in its dtype; None for torch itself."""
    dtype = job.partition(":")[2]
    baseline = f"torch:{dtype if dtype in TORCH_DTYPES else PACKED_AGAINST}"
    figure: dict[str, float] | None = compared.get(job, {}).get(baseline, {}).get("speedup")
    return figure


def copies_beyond(cache_bytes: int, call_bytes: int, max_bytes: int) -> int:
    """Sets of operands that take turns so that a cache of that size never holds the next set."""
    wanted = -(-4 * cache_bytes // call_bytes)
    return max(1, min(wanted, max_bytes // call_bytes))

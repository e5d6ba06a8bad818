"""The time of a decode step along six axes: layers, width, context, batch, inactive neurons, threads.

    python -m benchmarks scaling --output benchmarks/results/DEVICE/scaling-small.json

Models of random weights; all points take turns, sample by sample. Time is fitted to the time that reading the
step's bytes takes at the bandwidth measured beside it: seconds = a + b · floor, by least squares over the
medians of an axis's points. Were memory the only limit, a would be 0 and b 1.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from adept_fast.config import PersimmonConfig
from adept_fast.memory.bandwidth import BandwidthProbe
from benchmarks.baselines.adept_fast import AdeptFastWorker
from benchmarks.options import SPEED, Command, print_figures, sampling_options, take_arguments
from benchmarks.result_file import describe_run, table, write_report
from benchmarks.samples import Job, Sample, Samples, figures, sample_in_turn
from benchmarks.workloads import prompts_of
from tools.random_checkpoint import PRESETS, make_config, write_recipe

HEAD_DIM = 64
LESS_HEAD_DIM = 32  # of models narrower than one such head
FITTED = ("layers", "hidden", "context", "batch", "zeros")


@dataclass(frozen=True)
class Point:
    """A model, and the setting it decodes in."""

    format: str
    layers: int
    hidden: int
    zeros: float
    context: int
    batch: int
    threads: int

    @property
    def model(self) -> tuple[str, int, int, float]:
        return self.format, self.layers, self.hidden, self.zeros


def axis(name: str, default: str, number: type[int] | type[float] = int) -> Callable[[Command], Command]:
    """An option that takes ``1,2,4``: numbers of one type, in ascending order."""

    def parsed(context: click.Context, option: click.Parameter, value: str) -> list[Any]:
        try:
            return sorted({number(part) for part in value.split(",") if part.strip()})
        except ValueError:
            message = f"{value!r}; expected numbers with commas between them"
            raise click.BadParameter(message, context, option) from None

    return click.option(
        f"--{name}", f"{name}_axis", default=default, show_default=True, metavar="a,b,…", callback=parsed
    )


def powers_up_to(maximum: int) -> list[int]:
    """1, 2, 4, … and ``maximum``."""
    return sorted({maximum, *(1 << at for at in range(maximum.bit_length()))})


@click.command()
@click.option("--model", default="small", show_default=True, type=click.Choice(list(PRESETS)))
@click.option("--format", "formats", multiple=True, default=("float16",), show_default=True)
@axis("layers", "2,4,8,12")
@axis("hidden", "256,512,768,1024")
@axis("context", "64,1024,2048,4096")
@axis("batch", "1,2,4,8")
@axis("zeros", "0,0.5,0.9,0.95", float)
@axis("threads", ",".join(map(str, powers_up_to(len(os.sched_getaffinity(0))))))
@click.option("--steps", default=16, show_default=True, type=click.IntRange(min=1), help="A sample.")
@sampling_options(attempts=3, threads=False)
def main(model: str, formats: tuple[str, ...], steps: int, **options: Any) -> None:
    """Time decoding along each axis."""
    lists = {name: options.pop(f"{name}_axis") for name in (*FITTED, "threads")}
    threads = max(lists["threads"])
    arguments = take_arguments(options | {"threads": threads})
    points = all_points(PRESETS[model], formats, lists)
    with tempfile.TemporaryDirectory() as folder:
        runtimes = Runtimes(Path(folder), PRESETS[model], points.values(), steps)
        jobs = {
            str(point): Job(Steps(runtimes.of(point), point, steps, threads)) for point in points.values()
        }
        taken, dropped = sample_in_turn(jobs, arguments.samples, arguments.limits)
    report = describe_run("scaling", arguments.samples, threads) | {
        "model": PRESETS[model],
        "measured": {
            name: asdict(point)
            | {"axis": name.split()[1], "value": getattr(point, name.split()[1])}
            | figures(taken[str(point)], dropped[str(point)], point.batch)
            for name, point in points.items()
        },
        "fits": fits({name: taken[str(point)] for name, point in points.items()}),
        "steps": steps,
    }
    print_scaling(report)
    write_report(report, arguments.output)


def all_points(base: dict[str, int], formats: Iterable[str], lists: dict[str, list[Any]]) -> dict[str, Point]:
    """``float16 layers 4`` → the point; off its axis it is the preset, with the smallest other values."""
    points: dict[str, Point] = {}
    for fmt in formats:
        start = Point(
            format=fmt,
            layers=base["layers"],
            hidden=base["hidden"],
            zeros=0.5,
            context=min(lists["context"]),
            batch=1,
            threads=max(lists["threads"]),
        )
        for axis, values in lists.items():
            points |= {f"{fmt} {axis} {value}": replace(start, **{axis: value}) for value in values}
    return points


class Runtimes:
    """A runtime for every model among the points, with the longest cache that one of them needs."""

    def __init__(self, folder: Path, base: dict[str, int], points: Iterable[Point], steps: int) -> None:
        self._loaded: dict[Any, AdeptFastWorker] = {}
        points = list(points)
        for point in points:
            if point.model in self._loaded:
                continue
            alike = [other for other in points if other.model == point.model]
            context = max(other.context for other in alike) + steps + 1
            path = folder / "-".join(map(str, point.model))
            write_recipe(path, config_of(base, point, context), zeros=point.zeros)
            runtime = AdeptFastWorker()
            runtime.load(
                checkpoint=str(path),
                format=point.format,
                threads=point.threads,
                context=context,
                batch=max(other.batch for other in alike),
            )
            self._loaded[point.model] = runtime

    def of(self, point: Point) -> AdeptFastWorker:
        return self._loaded[point.model]


def config_of(base: dict[str, int], point: Point, context: int) -> PersimmonConfig:
    head_dim = HEAD_DIM if point.hidden >= HEAD_DIM else LESS_HEAD_DIM
    return make_config(
        hidden=point.hidden,
        layers=point.layers,
        heads=point.hidden // head_dim,
        intermediate=4 * point.hidden,
        vocab=base["vocab"],
        context=context,
    )


class Steps:
    """Decode steps at a point; with fewer threads than other points, also the bandwidth of these threads."""

    def __init__(self, runtime: AdeptFastWorker, point: Point, steps: int, threads: int) -> None:
        self._runtime = runtime
        self._point = point
        self._steps = steps
        self._threads = threads
        self._prompts = prompts_of(point.batch, point.context)

    def __call__(self) -> dict[str, Any]:
        torch.set_num_threads(self._point.threads)
        try:
            own = {}
            if self._point.threads < self._threads:
                own["own_bandwidth"] = BandwidthProbe(torch.device("cpu")).measure()
            answer = self._runtime.decode(self._prompts, self._steps)
        finally:
            torch.set_num_threads(self._threads)
        return answer | own | {"seconds_per_step": answer.pop("seconds") / self._steps}


def fits(samples: dict[str, Samples]) -> dict[str, dict[str, float]]:
    """For each format and axis, and for all axes of a format: the line through its points."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for name, taken in samples.items():
        fmt, axis, _ = name.split()
        clean = [sample for sample in taken if sample is not None]
        if axis in FITTED and clean:
            groups.setdefault(f"{fmt} {axis}", []).append(middle(clean))
            if axis != "batch":  # arithmetic may limit it
                groups.setdefault(f"{fmt} all but batch", []).append(middle(clean))
    lines = {name: line_through(group) for name, group in groups.items()}
    return {name: line for name, line in lines.items() if line is not None}


def middle(samples: list[Sample]) -> tuple[float, float]:
    """Medians of the floor and of the time, in seconds."""
    floors = [sample.floor_seconds for sample in samples]
    return float(np.median(floors)), float(np.median([sample.seconds_per_step for sample in samples]))


def line_through(points: list[tuple[float, float]]) -> dict[str, float] | None:
    """seconds = a + b · floor by least squares; None for fewer than three points, or all of one floor."""
    floors, seconds = np.array(points).T
    if len(points) < 3 or np.ptp(floors) == 0:
        return None
    terms = np.stack((np.ones_like(floors), floors), axis=1)  # [points, 2]
    (constant, times), *_ = np.linalg.lstsq(terms, seconds, rcond=None)
    left = np.square(seconds - terms @ (constant, times)).sum()
    spread = np.square(seconds - seconds.mean()).sum()
    return {
        "seconds": float(constant),
        "times_the_floor": float(times),
        "r_squared": float(1 - left / spread) if spread else 1.0,
        "points": len(points),
    }


def print_scaling(report: dict[str, Any]) -> None:
    columns = {name: SPEED[name] for name in ("ms/step", "share")}
    print_figures(report["measured"], columns=columns | {"limit": ("floor_milliseconds", 1.0, ".2f")})
    rows = [
        [name, f"{1e3 * fit['seconds']:.3f}", f"{fit['times_the_floor']:.2f}", f"{fit['r_squared']:.3f}"]
        for name, fit in report["fits"].items()
    ]
    click.echo("\n" + table(["ms = a + b · limit", "a", "b", "r²"], rows))

"""What a decode step costs as one thing after another grows: layers, width, context, batch, zeros, threads.

    python benchmarks/scaling.py --output benchmarks/results/DEVICE/scaling-small.json

Models of random weights; all points take turns, sample by sample. Time is fitted to the time that reading the
step's bytes takes at the bandwidth measured beside it: seconds = a + b · floor, by least squares over the
medians of an axis's points. Were memory the only limit, a would be 0 and b 1.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from contest import Limits, Sample, figures, sample_in_turn
from decode import prompt_ids
from harness import describe_run, table, write_report
from models import PRESETS, make_config, write_recipe

sys.path.insert(0, str(Path(__file__).resolve().parent / "rivals"))

from adept_fast_worker import AdeptFastWorker  # noqa: E402

from adept_fast.memory.bandwidth import BandwidthProbe  # noqa: E402

HEAD_DIM = 64
LESS_HEAD_DIM = 32  # of models narrower than one such head
FITTED = ("layers", "hidden", "context", "batch", "zeros")


@dataclass(frozen=True)
class Point:
    """A model, and what it is asked to do."""

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


class Values(click.ParamType):
    """``1,2,4``, in ascending order, of one type."""

    name = "a,b,…"

    def __init__(self, of: type[int] | type[float]) -> None:
        self._of = of

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, list):
            return value
        try:
            return sorted({self._of(part) for part in value.split(",") if part.strip()})
        except ValueError:
            return self.fail(f"{value!r}; expected numbers with commas between them", param, ctx)


@click.command()
@click.option("--model", default="small", show_default=True, type=click.Choice(list(PRESETS)))
@click.option("--format", "formats", multiple=True, default=("float16",), show_default=True)
@click.option("--layers", default="2,4,8,12", show_default=True, type=Values(int))
@click.option("--hidden", default="256,512,768,1024", show_default=True, type=Values(int))
@click.option("--context", default="64,1024,2048,4096", show_default=True, type=Values(int))
@click.option("--batch", default="1,2,4,8", show_default=True, type=Values(int))
@click.option("--zeros", default="0,0.5,0.9,0.95", show_default=True, type=Values(float))
@click.option("--threads", type=Values(int), help="The most of them elsewhere.  [default: 1 up to all cores]")
@click.option("--steps", default=16, show_default=True, type=click.IntRange(min=1), help="A sample.")
@click.option("--samples", default=7, show_default=True, type=click.IntRange(min=3))
@click.option("--max-bandwidth-change", default=Limits.bandwidth_change, show_default=True)
@click.option("--max-others-share", default=Limits.others_share, show_default=True)
@click.option("--attempts", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Where the JSON goes.")
def main(
    model: str,
    formats: tuple[str, ...],
    steps: int,
    samples: int,
    max_bandwidth_change: float,
    max_others_share: float,
    attempts: int,
    output: Path | None,
    **lists: Any,
) -> None:
    """Time decoding along each axis."""
    lists["threads"] = lists["threads"] or powers_up_to(len(os.sched_getaffinity(0)))
    threads = max(lists["threads"])
    torch.set_num_threads(threads)
    points = all_points(PRESETS[model], formats, lists)
    limits = Limits(max_bandwidth_change, max_others_share, attempts)
    with tempfile.TemporaryDirectory() as folder:
        runtimes = Runtimes(Path(folder), PRESETS[model], points.values(), steps)
        jobs = {point: (runtimes.of(point), Decode(point, steps, threads)) for point in set(points.values())}
        taken, dropped = sample_in_turn({str(point): job for point, job in jobs.items()}, samples, limits)
    report = describe_run("scaling", samples, threads) | {
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
    write_report(report, output)


def powers_up_to(most: int) -> list[int]:
    """1, 2, 4, … and ``most``."""
    return sorted({most, *(1 << at for at in range(most.bit_length()))})


def all_points(base: dict[str, int], formats: Iterable[str], lists: dict[str, list[Any]]) -> dict[str, Point]:
    """``float16 layers 4`` → the point; off its axis a point is the preset, with the least of the rest."""
    points = {}
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


class Here(AdeptFastWorker):
    """Ours in this very process, for what takes samples in turn."""

    pid = os.getpid()


class Runtimes:
    """A runtime for every model among the points, with the longest cache that one of them needs."""

    def __init__(self, folder: Path, base: dict[str, int], points: Iterable[Point], steps: int) -> None:
        self._loaded: dict[Any, Here] = {}
        points = list(points)
        for point in points:
            if point.model in self._loaded:
                continue
            alike = [other for other in points if other.model == point.model]
            context = max(other.context for other in alike) + steps + 1
            path = folder / "-".join(map(str, point.model))
            write_recipe(path, config_of(base, point, context), zeros=point.zeros)
            runtime = Here()
            runtime.load(
                checkpoint=str(path),
                format=point.format,
                threads=point.threads,
                context=context,
                batch=max(other.batch for other in alike),
            )
            self._loaded[point.model] = runtime

    def of(self, point: Point) -> Here:
        return self._loaded[point.model]


def config_of(base: dict[str, int], point: Point, context: int) -> Any:
    head_dim = HEAD_DIM if point.hidden >= HEAD_DIM else LESS_HEAD_DIM
    return make_config(
        hidden=point.hidden,
        layers=point.layers,
        heads=point.hidden // head_dim,
        intermediate=4 * point.hidden,
        vocab=base["vocab"],
        context=context,
    )


class Decode:
    """Some steps at a point. Where it takes fewer threads than others, the bandwidth of these beside it."""

    def __init__(self, point: Point, steps: int, threads: int) -> None:
        self._point = point
        self._steps = steps
        self._threads = threads
        self._prompts = [prompt_ids(point.context, first=5 + 100 * at) for at in range(point.batch)]

    def __call__(self, worker: Any) -> dict[str, Any]:
        torch.set_num_threads(self._point.threads)
        try:
            own = {}
            if self._point.threads < self._threads:
                own["own_bandwidth"] = BandwidthProbe(torch.device("cpu")).measure()
            answer = worker.decode(self._prompts, self._steps)
        finally:
            torch.set_num_threads(self._threads)
        return answer | own | {"seconds_per_step": answer.pop("seconds") / self._steps}


def fits(samples: dict[str, list[Sample | None]]) -> dict[str, dict[str, float]]:
    """For each format and axis, and for all axes of a format: the line through its points."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for name, taken in samples.items():
        fmt, axis, _ = name.split()
        clean = [sample for sample in taken if sample is not None]
        if axis in FITTED and clean:
            groups.setdefault(f"{fmt} {axis}", []).append(middle(clean))
            if axis != "batch":  # where arithmetic may be the limit
                groups.setdefault(f"{fmt} all but batch", []).append(middle(clean))
    lines = {name: line_through(group) for name, group in groups.items()}
    return {name: line for name, line in lines.items() if line is not None}


def middle(samples: list[Sample]) -> tuple[float, float]:
    """Medians of the floor and of the time, in seconds."""
    floors = [(sample.bytes_per_step or 0) / sample.bandwidth for sample in samples]
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
    def cell(values: dict[str, Any], name: str, form: str) -> str:
        return format(values[name]["median"], form) if name in values else "-"

    rows = [
        [
            name,
            cell(values, "milliseconds_per_step", ".2f"),
            cell(values, "floor_milliseconds", ".2f"),
            cell(values, "share_of_bandwidth", ".2f"),
            f"{values['clean_samples']} of {values['clean_samples'] + values['dropped_total']}",
        ]
        for name, values in report["measured"].items()
    ]
    click.echo(table(["", "ms a step", "limit", "share", "clean"], rows))
    rows = [
        [name, f"{1e3 * fit['seconds']:.3f}", f"{fit['times_the_floor']:.2f}", f"{fit['r_squared']:.3f}"]
        for name, fit in report["fits"].items()
    ]
    click.echo("\n" + table(["ms = a + b · limit", "a", "b", "r²"], rows))


if __name__ == "__main__":
    main()

"""Decode steps of matrices row by row, in tiles, and in tiles with one kernel for all layers.

    python -m benchmarks layouts --device cuda --output benchmarks/results/DEVICE/layouts-8b.json

One process: the weights of a format are loaded once in each layout, and biases make neurons inactive in
place. The first share of inactive neurons, number of rows and context of each list are the usual ones; the
last share is timed with every number of rows, and in the first format with every context. ``same_tokens``
says whether the first tokens are those of row by row, as they have to be where matrices are packed; prompts
in floats take another GEMM for each layout. Steps of one kernel, whose blocks wait for each other, come
last: nothing is lost if they never end.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from adept_fast import Runtime
from adept_fast.kv_cache import StaticKVCache
from adept_fast.memory.bandwidth import BandwidthProbe
from adept_fast.model import Persimmon
from adept_fast.ops.step_kernels import MAX_TOKENS_OF_ONE, refuses_one_kernel
from benchmarks.baselines.adept_fast import AdeptFastWorker
from benchmarks.baselines.public_api import FLOATS
from benchmarks.cases.speed import percents
from benchmarks.models import open_model, random_model
from benchmarks.options import choose_device, device_option
from benchmarks.result_file import describe_checkpoint, describe_run, table, write_report
from benchmarks.samples import Sample, figures
from benchmarks.workloads import FEWEST_STEPS, prompts_of
from tools.random_checkpoint import PRESETS, bias_for_zeros

FORMATS = {"cuda": ("float16", "fp8", "int4"), "cpu": ("float16", "int8")}
# Name → layout, and kernels of a step.
KINDS = {"row_major": ("row_major", "layers"), "tiles": ("tiles", "layers"), "one kernel": ("tiles", "one")}
MAX_ROWS = 16


@dataclass(frozen=True)
class Setting:
    format: str
    zeros: float
    rows: int
    context: int

    def named(self, kind: str) -> str:
        rows = f"{self.rows} row{'s' if self.rows > 1 else ''}"
        return f"{self.format}, {kind}, {self.zeros:.0%} zeros, {rows}, context {self.context}"


@click.command()
@click.option("--model", default="8b", show_default=True, type=click.Choice(list(PRESETS)))
@click.option("--format", "formats", multiple=True)
@click.option("--zeros", default="0,50,70,90", show_default=True, metavar="PERCENT,…", callback=percents)
@click.option(
    "--rows", multiple=True, default=(1, 4, 8, 16), show_default=True, type=click.IntRange(1, MAX_ROWS)
)
@click.option("--context", "contexts", multiple=True, default=(128, 16384), show_default=True, type=int)
@click.option(
    "--steps", default=32, show_default=True, type=click.IntRange(min=FEWEST_STEPS), help="A sample."
)
@click.option("--samples", default=3, show_default=True, type=click.IntRange(min=1))
@device_option("auto")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Where the JSON goes.")
def main(
    model: str,
    formats: tuple[str, ...],
    zeros: list[float],
    rows: tuple[int, ...],
    contexts: tuple[int, ...],
    steps: int,
    samples: int,
    device: str,
    output: Path | None,
) -> None:
    """Time decode steps in each layout of the matrices."""
    place = choose_device(device)
    formats = formats or FORMATS[place.type]
    settings = [
        each for fmt in formats for each in settings_of(fmt, fmt == formats[0], zeros, rows, contexts)
    ]
    report = describe_run("layouts", samples, torch.get_num_threads(), place) | {
        "steps": steps,
        "measured": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = random_model(model, 0.5, Path(folder), drawn=True)
        report["model"] = describe_checkpoint(path)
        for name, row in measure(path, place, settings, steps, samples):
            report["measured"][name] = compared(row, report["measured"] | {name: row})
            write_report(report, output)
    click.echo(layouts_table(report["measured"]))


def settings_of(
    fmt: str, is_first: bool, zeros: list[float], rows: tuple[int, ...], contexts: tuple[int, ...]
) -> list[Setting]:
    """Those that share a cache come together, the largest cache last."""
    usual = [Setting(fmt, share, rows[0], contexts[0]) for share in zeros]
    usual += [Setting(fmt, zeros[-1], count, contexts[0]) for count in rows[1:]]
    return usual + [Setting(fmt, zeros[-1], rows[0], context) for context in contexts[1:] if is_first]


def measure(
    path: Path, device: torch.device, settings: list[Setting], steps: int, samples: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The figures of every setting and kind; those of a format follow each other, but for one kernel's."""
    timing = Timing(device, steps, samples)
    kinds, max_rows_of_one = kinds_on(device, open_model(path).config.head_dim)
    kept: dict[str, Runtime] = {}  # in tiles, for the one kernel
    for fmt in dict.fromkeys(each.format for each in settings):
        own = [each for each in settings if each.format == fmt]
        for kind in kinds:
            loaded = load(path, fmt, KINDS[kind][0], device)
            yield from timing(loaded, kind, own)
            if kind == "tiles" and max_rows_of_one:
                kept[fmt] = loaded
            del loaded
            release(device)
    for fmt, loaded in kept.items():
        own = [each for each in settings if each.format == fmt and each.rows <= max_rows_of_one]
        yield from timing(loaded, "one kernel", own)


def kinds_on(device: torch.device, head_dim: int) -> tuple[list[str], int]:
    """Those of KINDS with weights of their own, and the most rows of the one kernel: 0 if it does not run."""
    if device.type != "cuda":
        return ["row_major"], 0
    refused = refuses_one_kernel(device, head_dim) is not None
    return ["row_major", "tiles"], 0 if refused else MAX_TOKENS_OF_ONE


class Timing:
    """Times settings, and compares the tokens of each with those of the first kind."""

    def __init__(self, device: torch.device, steps: int, samples: int) -> None:
        self._probe = BandwidthProbe(device)
        self._steps = steps
        self._samples = samples
        self._tokens: dict[Setting, list[list[int]]] = {}

    def __call__(
        self, loaded: Runtime, kind: str, settings: list[Setting]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        worker, context = AdeptFastWorker(), 0
        layers = loaded.engine.runner.model.weights.layers
        worker.down_bytes = sum(layer.w_down_t.nbytes for layer in layers)
        for setting in settings:
            if setting.context != context:
                context = setting.context
                worker.runtime = None  # frees its cache
                rows = max(each.rows for each in settings if each.context == context)
                worker.runtime = with_room(loaded, KINDS[kind][1], rows, context + self._steps + 1)
            for layer in layers:
                layer.b_up.fill_(bias_for_zeros(setting.zeros))
            yield setting.named(kind), self._figures(worker, kind, setting)

    def _figures(self, worker: AdeptFastWorker, kind: str, setting: Setting) -> dict[str, Any]:
        assert worker.runtime is not None
        prompts = prompts_of(setting.rows, setting.context, worker.runtime.tokenizer.vocab_size)
        first = worker.runtime.generate(prompts, max_new_tokens=FEWEST_STEPS, ignore_eos=True)
        ids = [each.token_ids for each in first]
        same = self._tokens.setdefault(setting, ids) == ids
        bandwidth = self._probe.measure()
        taken: list[Sample | None] = []
        for _ in range(self._samples):
            answer = worker.decode(prompts, self._steps)
            seconds = answer.pop("seconds") / self._steps
            taken.append(Sample(seconds, answer.pop("bytes_per_step"), bandwidth, answer))
        facts = vars(setting) | {"kind": kind, "same_tokens": same}
        return figures(taken, Counter(), setting.rows) | facts


def load(path: Path, fmt: str, layout: str, device: torch.device) -> Runtime:
    """With hardly any cache: ``with_room`` gives it others."""
    return Runtime.load(
        open_model(path, device),
        device=device,
        dtype=fmt if fmt in FLOATS else "auto",
        weights=None if fmt in FLOATS else fmt,
        weight_layout=layout if device.type == "cuda" else "auto",
        max_seq_len=FEWEST_STEPS,
        progress=False,
    )


def with_room(loaded: Runtime, step: str, rows: int, tokens: int) -> Runtime:
    """The same weights with another cache, and with these kernels of a step in tiles."""
    os.environ["ADEPT_FAST_STEP"] = step
    before = loaded.engine.runner
    model = Persimmon(
        loaded.config, before.model.weights, max_seq_len=tokens, vocab_size=loaded.tokenizer.vocab_size
    )
    cache = StaticKVCache(
        loaded.config,
        max_batch_size=rows,
        max_seq_len=tokens,
        dtype=before.cache.data.dtype,
        device=model.device,
    )
    plan, graphs = loaded.memory(), "required"
    return Runtime(model, loaded.tokenizer, cache, plan, loaded.placement, loaded.load_seconds, graphs)


def release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def compared(row: dict[str, Any], measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """With its speed as a multiple of row by row's, and its time as one of a single row's."""
    setting = Setting(row["format"], row["zeros"], row["rows"], row["context"])
    one = Setting(row["format"], row["zeros"], 1, row["context"])
    seconds = row["milliseconds_per_step"]["median"]
    others = {"times_as_fast": setting.named("row_major"), "over_one_row": one.named(row["kind"])}
    found = {
        key: measured[other]["milliseconds_per_step"]["median"]
        for key, other in others.items()
        if other in measured
    }
    ratios = {
        key: seconds / other if key == "over_one_row" else other / seconds for key, other in found.items()
    }
    return row | ratios


def layouts_table(measured: dict[str, dict[str, Any]]) -> str:
    """A line for each row of the results."""
    header = [
        "format",
        "zeros",
        "rows",
        "context",
        "kind",
        "ms",
        "tokens/s",
        "MB",
        "share",
        "times row_major",
    ]
    header += ["over 1 row", "same tokens"]
    lines = []
    for row in sorted(
        measured.values(), key=lambda each: (each["format"], each["context"], each["rows"], each["zeros"])
    ):
        medians = (row[name]["median"] for name in ("milliseconds_per_step", "tokens_per_second"))
        milliseconds, rate = medians
        lines.append(
            [
                *(row["format"], f"{row['zeros']:.0%}", str(row["rows"]), str(row["context"]), row["kind"]),
                *(f"{milliseconds:.3f}", f"{rate:.1f}", f"{1e-6 * row['bytes_per_step']:.1f}"),
                f"{row['share_of_bandwidth']['median']:.3f}",
                *(f"{row[name]:.2f}" if name in row else "-" for name in ("times_as_fast", "over_one_row")),
                "yes" if row["same_tokens"] else "no",
            ]
        )
    return table(header, lines) if lines else ""


if __name__ == "__main__":
    main()

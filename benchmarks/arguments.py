"""The command line that the benchmarks of several runtimes share, and what they print."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from contest import RIVALS, Contestant, Limits
from harness import table


@dataclass(frozen=True)
class Arguments:
    """What every benchmark is told."""

    checkpoint: Path
    contestants: list[Contestant]
    samples: int
    threads: int
    pythons: dict[str, str]
    limits: Limits
    output: Path | None


def benchmark_options(
    default_contestants: tuple[str, ...], *, needs_checkpoint: bool = True
) -> Callable[[Callable], Callable]:
    """A decorator that adds the shared options; ``take_arguments`` reads them."""
    options = [
        click.option(
            "--checkpoint",
            required=needs_checkpoint,
            type=click.Path(exists=True, file_okay=False, path_type=Path),
            help="A Hugging Face directory, such as tools/random_checkpoint.py writes.",
        ),
        click.option(
            "--contestant",
            "contestants",
            multiple=True,
            default=default_contestants,
            show_default=bool(default_contestants),
            help="RUNTIME:FORMAT; several times for several.",
        ),
        click.option(
            "--samples", default=7, show_default=True, type=click.IntRange(min=3), help="Of each contestant."
        ),
        click.option("--threads", default=2, show_default=True, type=click.IntRange(min=1), help="Of each."),
        click.option(
            "--python",
            "pythons",
            multiple=True,
            metavar="RUNTIME=PATH",
            help="The interpreter in whose environment a runtime is installed.  [default: this one]",
        ),
        click.option(
            "--max-bandwidth-change",
            default=Limits.bandwidth_change,
            show_default=True,
            help="Samples whose two probes of the bandwidth differ by a larger share are dropped.",
        ),
        click.option(
            "--max-others-share",
            default=Limits.others_share,
            show_default=True,
            help="Samples during which others have a larger share of the processors are dropped.",
        ),
        click.option(
            "--attempts",
            default=Limits.attempts,
            show_default=True,
            type=click.IntRange(min=1),
            help="At a sample that is not dropped, before a round goes on without.",
        ),
        click.option(
            "--output", type=click.Path(dir_okay=False, path_type=Path), help="Where the JSON goes."
        ),
    ]

    def decorate(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def take_arguments(options: dict[str, Any]) -> Arguments:
    """The shared options, checked; this process, which probes the bandwidth, takes as many threads."""
    torch.set_num_threads(options["threads"])
    pythons = {}
    for entry in options["pythons"]:
        rival, equals, path = entry.partition("=")
        if rival not in RIVALS or not equals:
            raise click.BadParameter(f"{entry!r}; expected RUNTIME=PATH, RUNTIME one of {', '.join(RIVALS)}")
        pythons[rival] = path
    try:
        contestants = [Contestant.parse(text) for text in options["contestants"]]
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return Arguments(
        checkpoint=options["checkpoint"],
        contestants=contestants,
        samples=options["samples"],
        threads=options["threads"],
        pythons=pythons,
        limits=Limits(options["max_bandwidth_change"], options["max_others_share"], options["attempts"]),
        output=options["output"],
    )


def print_figures(measured: dict[str, dict[str, Any]], absent: dict[str, str]) -> None:
    """A row for each contestant; for who is absent, why."""
    columns = {
        "tokens/s": ("tokens_per_second", 1.0, ".1f"),
        "ms/step": ("milliseconds_per_step", 1.0, ".2f"),
        "read GB/s": ("bytes_per_second", 1e-9, ".1f"),
        "memory GB/s": ("read_bandwidth_bytes_per_second", 1e-9, ".1f"),
        "share": ("share_of_bandwidth", 1.0, ".2f"),
        "of the dense floor": ("share_of_dense_floor", 1.0, ".2f"),
    }
    rows = []
    for name, values in measured.items():
        cells = [_cell(values.get(figure), factor, form) for figure, factor, form in columns.values()]
        counts = f"{values['clean_samples']} of {values['clean_samples'] + values['dropped_total']}"
        rows.append([name, *cells, counts])
    if rows:
        click.echo(table(["median (p10 to p90)", *columns, "clean"], rows))
    for name, reason in absent.items():
        click.echo(f"{name} is absent: {reason}")


def print_ratios(ratios: dict[str, dict[str, dict[str, Any]]]) -> None:
    """How many times as fast: ours down, rivals across; as timed, and in parentheses at equal bandwidth.

    Of several settings each row of ours has rivals of its own, so a column is a rival in that row's setting.
    """
    # What follows a comma in a name is the setting.
    cells = {
        name: {
            rival.partition(",")[0]: (
                f"{figure['speedup']['median']:.2f} ({figure['at_equal_bandwidth']['median']:.2f})"
            )
            for rival, figure in row.items()
        }
        for name, row in ratios.items()
    }
    rivals = list(dict.fromkeys(rival for row in cells.values() for rival in row))
    if not rivals:
        return
    rows = [[name, *(row.get(rival, "-") for rival in rivals)] for name, row in cells.items()]
    click.echo("")
    click.echo(table(["times as fast (at equal bandwidth)", *rivals], rows))


def _cell(figure: dict[str, float] | None, factor: float, form: str) -> str:
    if figure is None:
        return "-"
    median, low, high = (format(figure[key] * factor, form) for key in ("median", "p10", "p90"))
    return f"{median} ({low} to {high})"

"""Options that several cases share, and the tables that they print."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.result_file import table
from benchmarks.samples import Limits
from benchmarks.workers import RUNTIMES, Variant

Command = Callable[..., None]
PYTHON = click.option(
    "--python",
    "pythons",
    multiple=True,
    metavar="RUNTIME=PATH",
    help="The interpreter in whose environment a runtime is installed.  [default: this one]",
)


def device_option(default: str = "cpu") -> Callable[[Command], Command]:
    return click.option(
        "--device",
        default=default,
        show_default=True,
        type=click.Choice(["auto", "cpu", "cuda"]),
        help="auto: a GPU if there is one.",
    )


@dataclass(frozen=True)
class Arguments:
    """The options of every case that samples."""

    samples: int
    threads: int
    limits: Limits
    output: Path | None
    checkpoint: Path = Path()
    variants: tuple[Variant, ...] = ()
    pythons: dict[str, str] | None = None

    @property
    def interpreters(self) -> dict[str, str]:
        return self.pythons or {}


def sampling_options(
    *, samples: int = 7, attempts: int = Limits.attempts, threads: bool = True
) -> Callable[[Command], Command]:
    """A decorator: how many samples, with how many threads, which are dropped, and where the result goes.

    ``take_arguments`` reads them. Without ``threads`` the case has an option of its own for them.
    """
    number = click.option("--threads", default=2, show_default=True, type=click.IntRange(min=1))
    return _all_of(
        click.option("--samples", default=samples, show_default=True, type=click.IntRange(min=3)),
        *([number] if threads else []),
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
            help="Samples during which others use a larger share of the processors are dropped.",
        ),
        click.option(
            "--attempts",
            default=attempts,
            show_default=True,
            type=click.IntRange(min=1),
            help="At a sample that is not dropped, before a round goes on without.",
        ),
        click.option(
            "--output", type=click.Path(dir_okay=False, path_type=Path), help="Where the JSON goes."
        ),
    )


def runtime_options(
    default: tuple[str, ...], *, needs_checkpoint: bool = True
) -> Callable[[Command], Command]:
    """A decorator: the checkpoint, and the runtimes that run it; with ``sampling_options``."""
    return _all_of(
        click.option(
            "--checkpoint",
            required=needs_checkpoint,
            type=click.Path(exists=True, file_okay=False, path_type=Path),
            help="A Hugging Face directory, such as tools/random_checkpoint.py writes.",
        ),
        click.option(
            "--runtime",
            "--contestant",  # as commands in result files have it
            "variants",
            multiple=True,
            default=default,
            show_default=bool(default),
            help="RUNTIME:FORMAT; several times for several.",
        ),
        PYTHON,
        sampling_options(),
    )


def _all_of(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def take_arguments(options: dict[str, Any]) -> Arguments:
    """The shared options, taken out of ``options`` and checked; torch gets those threads here too."""
    pythons = {}
    for entry in options.pop("pythons", ()):
        runtime, equals, path = entry.partition("=")
        if runtime not in RUNTIMES or not equals:
            raise click.BadParameter(
                f"{entry!r}; expected RUNTIME=PATH, RUNTIME one of {', '.join(RUNTIMES)}"
            )
        pythons[runtime] = path
    try:
        variants = tuple(Variant.parse(text) for text in options.pop("variants", ()))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    limits = ("max_bandwidth_change", "max_others_share", "attempts")
    arguments = Arguments(
        options.pop("samples"),
        options.pop("threads"),
        Limits(*(options.pop(name) for name in limits)),
        options.pop("output"),
        options.pop("checkpoint", None) or Path(),
        variants,
        pythons,
    )
    torch.set_num_threads(arguments.threads)
    return arguments


def choose_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise click.BadParameter(f"--device is cuda; torch {torch.__version__} sees no GPU here")
    return torch.device(
        "cuda" if name == "auto" and torch.cuda.is_available() else name.replace("auto", "cpu")
    )


# Column → the figure in it, its unit, and its format.
Columns = dict[str, tuple[str, float, str]]
SPEED: Columns = {
    "tokens/s": ("tokens_per_second", 1.0, ".1f"),
    "ms/step": ("milliseconds_per_step", 1.0, ".2f"),
    "read GB/s": ("bytes_per_second", 1e-9, ".1f"),
    "memory GB/s": ("read_bandwidth_bytes_per_second", 1e-9, ".1f"),
    "share": ("share_of_bandwidth", 1.0, ".2f"),
    "of the dense floor": ("share_of_dense_floor", 1.0, ".2f"),
}


def print_figures(
    measured: dict[str, dict[str, Any]], absent: dict[str, str] | None = None, columns: Columns = SPEED
) -> None:
    """A row for each job, with the samples behind it; then the absent runtimes, and why."""
    rows = [
        [
            name,
            *(cell(values.get(figure), factor, form) for figure, factor, form in columns.values()),
            f"{values['clean_samples']} of {values['clean_samples'] + values['dropped_total']}",
        ]
        for name, values in measured.items()
    ]
    if rows:
        click.echo(table(["median (p10 to p90)", *columns, "clean"], rows))
    for name, reason in (absent or {}).items():
        click.echo(f"{name} is absent: {reason}")


def print_speedups(speedups: dict[str, dict[str, dict[str, Any]]]) -> None:
    """How many times as fast: ours down, baselines across; as timed, and in parentheses at equal bandwidth.

    A column is a baseline in the setting of each row.
    """
    # The setting follows a comma in a name.
    cells = {
        name: {
            other.partition(",")[0]: (
                f"{figure['speedup']['median']:.2f} ({figure['at_equal_bandwidth']['median']:.2f})"
            )
            for other, figure in row.items()
        }
        for name, row in speedups.items()
    }
    others = list(dict.fromkeys(other for row in cells.values() for other in row))
    if others:
        rows = [[name, *(row.get(other, "-") for other in others)] for name, row in cells.items()]
        click.echo("\n" + table(["times as fast (at equal bandwidth)", *others], rows))


def cell(figure: dict[str, float] | float | None, factor: float = 1.0, form: str = ".2f") -> str:
    if figure is None:
        return "-"
    if not isinstance(figure, dict):
        return format(figure * factor, form)
    median, low, high = (format(figure[key] * factor, form) for key in ("median", "p10", "p90"))
    return f"{median} ({low} to {high})"

"""Writes the figures of the README and of pages of docs from the result files, or reports changes.

    python -m benchmarks readme          # rewrites the sections, and plots whose figures have changed
    python -m benchmarks readme --check  # exit code 1 if README or plots are not those of the files

A section stands between ``<!-- begin: KIND DEVICE/NAME … -->`` and ``<!-- end -->``: KIND, or several joined
by ``+``, names the tables and plots made of ``benchmarks/results/DEVICE/NAME.json``; the source of the
figures follows. Text outside of sections stays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.report import plot, simulated
from benchmarks.report.tables import NO_FIGURE, figure, markdown, wrapped

ROOT = Path(__file__).resolve().parents[2]
# The pages that show figures, and the folder of the results in their links.
PAGES = {
    ROOT / "README.md": "benchmarks/results",
    ROOT / "docs" / "benchmarks.md": "../benchmarks/results",
    ROOT / "docs" / "scaling.md": "../benchmarks/results",
}
RESULTS = ROOT / "benchmarks" / "results"
SECTION = re.compile(r"^<!-- begin: (\S+) ([^>]+?) -->\n.*?^<!-- end -->$", re.MULTILINE | re.DOTALL)

Report = dict[str, Any]


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; fail if something would change.")
@click.option(
    "--device",
    metavar="FOLDER",
    help="Show results of benchmarks/results/FOLDER in place of another device's, if they exist.",
)
def main(check: bool, device: str | None) -> None:
    """Bring the figures of the README and of the pages of docs up to date."""
    try:
        texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
        stale = update_plots("\n".join(texts.values()), device, check=check)
        written = {page: rewrite(text, device, folder=PAGES[page]) for page, text in texts.items()}
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    stale += [page.name for page in PAGES if written[page] != texts[page]]
    if check and stale:
        raise click.ClickException(
            f"not what the result files say: {', '.join(stale)}; run python -m benchmarks readme"
        )
    if not check:
        for page, text in written.items():
            page.write_text(text, encoding="utf-8")
    click.echo(f"{'as the result files say' if not stale else 'rewritten: ' + ', '.join(stale)}")


def rewrite(
    text: str, device: str | None = None, results: Path = RESULTS, folder: str = "benchmarks/results"
) -> str:
    """A page with every section made anew from the result files; ``folder`` is theirs in the page's links.

    Raises ValueError for a section of an unknown kind, or whose file is not there or is no result.
    """

    def section(match: re.Match[str]) -> str:
        kinds, names = match[1].split("+"), result_names(match[2].split(), device, results)
        reports = [read_result(results / f"{name}.json") for name in names]
        parts = [part(kind, reports, names) for kind in kinds]
        body = "\n\n".join([*parts, origin(reports, names)]).replace("benchmarks/results/", f"{folder}/")
        return f"<!-- begin: {match[1]} {' '.join(names)} -->\n{body}\n<!-- end -->"

    return SECTION.sub(section, text)


def part(kind: str, reports: Sequence[Report], names: Sequence[str]) -> str:
    """The Markdown of one kind for these reports."""
    if kind in plot.KINDS:
        return picture(kind, reports, names)
    if kind not in RENDERERS:
        known = ", ".join([*RENDERERS, *plot.KINDS])
        raise ValueError(f"README: a section is of the kind {kind!r}; expected one of {known}")
    return RENDERERS[kind](reports)


def update_plots(text: str, device: str | None, *, check: bool, results: Path = RESULTS) -> list[str]:
    """Draw the plots whose figures are not those of the files; returns their names, drawn or not."""
    stale = []
    for kinds, names in SECTION.findall(text):
        files = result_names(names.split(), device, results)
        for kind in filter(plot.KINDS.__contains__, kinds.split("+")):
            figures = plot.KINDS[kind].figures([read_result(results / f"{name}.json") for name in files])
            for theme in plot.THEMES:
                file = results / plot_name(kind, files, theme)
                if plot.figures_in(file) != figures:
                    stale.append(file.name)
                    if not check:
                        plot.draw(kind, figures, theme, file)
    return stale


def result_names(names: Sequence[str], device: str | None, results: Path) -> list[str]:
    """The same results of ``device``, if it has them all."""
    other = [f"{device}/{name.rpartition('/')[2]}" for name in names]
    return other if device and all((results / f"{name}.json").is_file() for name in other) else list(names)


def read_result(path: Path) -> Report:
    """Raises ValueError if there is none, or one that nobody could repeat.

    Changes that were not committed must be described in ``changes``.
    """
    if not path.is_file():
        raise ValueError(f"{path.name} is not there, and a section of the README shows it")
    report: Report = json.loads(path.read_text(encoding="utf-8"))
    if not report["commit"] or (report["uncommitted_changes"] and not report.get("changes")):
        raise ValueError(f"{path.name} was measured on a tree with uncommitted changes: no result")
    return report


def origin(reports: Sequence[Report], names: Sequence[str]) -> str:
    """Device, date and commit of the figures, and the runtimes that are absent."""
    said = "; ".join(dict.fromkeys(_origin_of(report) for report in reports))
    files = ", ".join(f"[{Path(name).name}.json](benchmarks/results/{name}.json)" for name in names)
    absent: dict[str, list[str]] = {}
    for report in reports:
        for name, why in report.get("absent", {}).items():
            absent.setdefault(why, []).append(name)
    missing = (wrapped(f"Absent: {', '.join(who)} ({why}).") for why, who in absent.items())
    changes = dict.fromkeys(report["changes"] for report in reports if report["uncommitted_changes"])
    uncommitted = (wrapped(f"One change was not committed: {change}.") for change in changes)
    return "\n".join([f"{said}: {files}.", *uncommitted, *missing])


def _origin_of(report: Report) -> str:
    cores = "" if "gpu" in report["machine"] else f", {report['machine']['cores']} cores"
    threads = f"{report['threads']} thread{'s' if report['threads'] > 1 else ''}"
    samples = (
        f"{report['samples']} questions"
        if report["benchmark"] == "quality"
        else simulated.SAMPLES
        if report["benchmark"] == "growth"
        else f"medians of {report['samples']}"
    )
    return f"{report['device']}{cores}, {threads}, {samples}, {report['date']}, commit {report['commit']}"


def megabytes(values: dict[str, Any]) -> str:
    """Of a step."""
    if "bytes_per_step" not in values:
        return NO_FIGURE
    count = values["bytes_per_step"] / 1e6
    return f"{count:.0f}" if count >= 10 else f"{count:.1f}"


def all_measured(reports: Sequence[Report]) -> dict[str, dict[str, Any]]:
    return {name: values for report in reports for name, values in report["measured"].items()}


Values = dict[str, Any]
Column = tuple[str, Callable[[Values], str]]


def shown(name: str, digits: int, factor: float = 1.0) -> Callable[[Values], str]:
    return lambda values: figure(values.get(name), digits, factor)


def gigabytes(name: str) -> Callable[[Values], str]:
    return lambda values: f"{values[name] / 1e9:.1f} GB" if name in values else NO_FIGURE


def table_of(*columns: Column, first: str = "") -> Callable[[Sequence[Report]], str]:
    """A row for each name in ``measured``."""

    def render(reports: Sequence[Report]) -> str:
        rows = [
            [name, *(cell(values) for _, cell in columns)] for name, values in all_measured(reports).items()
        ]
        return markdown([first, *(header for header, _ in columns)], rows)

    return render


MEGABYTES: Column = ("MB a token", megabytes)
SPEED: Column = ("tokens a second (p10 to p90)", shown("tokens_per_second", 1))
SHARE: Column = ("share of the bandwidth", shown("share_of_bandwidth", 2))


def throughput(reports: Sequence[Report]) -> str:
    """Steps on a GPU. The bandwidth beside them is that of a copy, no limit: no share of it is shown."""
    steps: Column = ("ms a step (p10 to p90)", shown("milliseconds_per_step", 2))
    rate: Column = ("TB a second (p10 to p90)", shown("bytes_per_second", 2, 1e-12))
    return f"{table_of(MEGABYTES, SPEED, steps, rate)(reports)}\n\n{copies(reports)}"


def copies(reports: Sequence[Report]) -> str:
    """The bandwidth beside the samples, over all rows."""
    medians = [
        values["read_bandwidth_bytes_per_second"]["median"] / 1e12
        for values in all_measured(reports).values()
        if "read_bandwidth_bytes_per_second" in values
    ]
    if not medians:
        return "No copy was timed beside the samples."
    return wrapped(
        f"A copy beside the samples moved {min(medians):.2f} to {max(medians):.2f} TB a second (medians), "
        "counting the bytes that it read and those that it wrote."
    )


def demo(reports: Sequence[Report]) -> str:
    names = {
        "loading, seconds": ("load_seconds", 1.0, 2),
        "time to first token, milliseconds": ("time_to_first_token_seconds", 1e3, 1),
        "decode, tokens a second": ("decode_tokens_per_second", 1.0, 0),
        "weights and cache read, GB a second": ("decode_bytes_per_second", 1e-9, 1),
        "memory bandwidth, GB a second": ("read_bandwidth_bytes_per_second", 1e-9, 1),
    }
    measured = all_measured(reports)
    rows = [[said, figure(measured[name], digits, factor)] for said, (name, factor, digits) in names.items()]
    return markdown(["", "median (p10 to p90)"], rows)


def prefill(reports: Sequence[Report]) -> str:
    rows = [
        [
            name.partition(", ")[0],
            str(values.get("prompt_tokens", report["prompt_tokens"])),
            figure(values.get("tokens_per_second"), 0),
        ]
        for report in reports
        for name, values in report["measured"].items()
    ]
    return markdown(["", "tokens of the prompt", "read a second (p10 to p90)"], rows)


def batch(reports: Sequence[Report]) -> str:
    rows = [
        [name, str(report["batch"]), figure(times and times["at_equal_bandwidth"], 2)]
        for report in reports
        for name, times in report["time_of_a_step_against_batch_1"].items()
    ]
    return markdown(["", "sequences", "time of a step against one of 1, at equal bandwidth"], rows)


def rows_with(name: str, render: Callable[[Sequence[Report]], str]) -> Callable[[Sequence[Report]], str]:
    """The rendering of the rows that have a figure of this name."""

    def rendered(reports: Sequence[Report]) -> str:
        return render(
            [
                {"measured": {row: values for row, values in report["measured"].items() if name in values}}
                for report in reports
            ]
        )

    return rendered


def scaling(reports: Sequence[Report]) -> str:
    rows = [
        [
            axis,
            f"{fit['seconds'] * 1e3:.2f} ms + {fit['times_the_floor']:.2f} × floor",
            f"{fit['r_squared']:.3f}",
        ]
        for report in reports
        for axis, fit in report["fits"].items()
    ]
    return markdown(["what grows", "time of a step", "r²"], rows)


def accelerated(reports: Sequence[Report]) -> str:
    sides = ("accelerated", "plain")
    rows = [
        [
            case,
            *(figure(report["measured"][f"{case}, {side}"].get("tokens_per_second"), 1) for side in sides),
            figure(times, 2),
        ]
        for report in reports
        for case, times in report["times_as_fast"].items()
    ]
    return markdown(["tokens a second, median (p10 to p90)", *sides, "times as fast"], rows)


def quality(reports: Sequence[Report]) -> str:
    rows = [
        [
            f"`{name}`",
            f"{values['bytes_read_per_token'] / 1e6:.1f} MB",
            f"{values['log_likelihood_per_token']:.5f}".replace("-", "−"),
            f"{values['exact_match']:.2%}",
            f"{values['answers_as_in_float32']:.2%}",
        ]
        for name, values in all_measured(reports).items()
    ]
    header = ["weights", "read for a token", "log-likelihood of an answer's token", "right word for word"]
    return markdown([*header, "answered as in float32"], rows)


def ratios(reports: Sequence[Report]) -> str:
    """How many times the tokens a second of each other server ours gives."""
    rows = [
        [f"{ours.partition(',')[0]} over {other.partition(',')[0]}", figure(times, 2)]
        for report in reports
        for ours, others in report["ratios"].items()
        for other, times in others.items()
    ]
    return markdown(["tokens/s in a closed loop", "times (p10 to p90)"], rows)


RENDERERS: dict[str, Callable[[Sequence[Report]], str]] = {
    "decode": table_of(MEGABYTES, SPEED, SHARE),
    "demo": demo,
    "memory": table_of(
        SPEED,
        SHARE,
        ("peak memory", gigabytes("peak_resident_bytes")),
        ("weights, cache and 1 GB", gigabytes("limit_bytes")),
    ),
    "prefill": prefill,
    "batch": batch,
    "scaling": scaling,
    "operators": table_of(
        ("MB", megabytes),
        ("ms (p10 to p90)", shown("milliseconds_per_step", 2)),
        SHARE,
        ("against PyTorch", shown("times_as_fast", 2)),
    ),
    "load": table_of(
        ("import", shown("import_seconds", 2)),
        ("load", shown("load_seconds", 2)),
        ("start to first token", shown("total_seconds", 2)),
        first="seconds, median (p10 to p90)",
    ),
    "accelerated": accelerated,
    "quality": quality,
    "throughput": throughput,
    "serve": rows_with(
        "tokens_per_second",
        table_of(
            ("tokens/s (p10 to p90)", shown("tokens_per_second", 0)),
            ("first token, ms", shown("time_to_first_token_seconds_p50", 0, 1e3)),
            ("between tokens, ms", shown("seconds_between_tokens_p50", 1, 1e3)),
            ("p99", shown("seconds_between_tokens_p99", 1, 1e3)),
            ("end to end, s", shown("end_to_end_seconds_p50", 2)),
        ),
    ),
    "serve-long": rows_with(
        "between_tokens_median",
        table_of(
            ("between tokens, ms (p10 to p90)", shown("quiet_median", 1, 1e3)),
            ("while it is read", shown("while_reading_median", 1, 1e3)),
            ("p99", shown("while_reading_p99", 1, 1e3)),
            ("p99 over median", shown("p99_over_median", 2)),
            ("over that without", shown("p99_over_quiet_median", 2)),
            ("prompt read in, ms", shown("long_prompt_seconds", 0, 1e3)),
        ),
    ),
    "serve-ratios": ratios,
    "reality": simulated.reality,
    "capacity": simulated.capacity,
    "fleets": simulated.fleets,
}


def plot_name(kind: str, names: Sequence[str], theme: str) -> str:
    """``amd-epyc-2-cores/decode-0.7g-speed-dark.svg``."""
    return f"{names[0]}-{kind}-{theme}.svg"


def picture(kind: str, reports: Sequence[Report], names: Sequence[str]) -> str:
    """The plot for light and dark backgrounds; what it shows in words, for those who cannot see it."""
    dark, light = (f"benchmarks/results/{plot_name(kind, names, theme)}" for theme in ("dark", "light"))
    words = plot.KINDS[kind].words(plot.KINDS[kind].figures(reports))
    return (
        f'<picture>\n<source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
        f'<img alt="{words}" src="{light}">\n</picture>'
    )

"""Writes the figures of the README and of docs/benchmarks.md from the result files, or says that they differ.

    python benchmarks/readme.py          # rewrites the sections, and plots whose figures have changed
    python benchmarks/readme.py --check  # exit code 1 where README or plots are not those of the files

A section stands between ``<!-- begin: KIND DEVICE/NAME … -->`` and ``<!-- end -->``: KIND, or several joined
by ``+``, says what is made of ``benchmarks/results/DEVICE/NAME.json``, and below it stands where the figures
come from. What is written by hand is left alone.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import plot

ROOT = Path(__file__).resolve().parent.parent
# The pages that show figures, and the folder of the results as their links have it.
PAGES = {
    ROOT / "README.md": "benchmarks/results",
    ROOT / "docs" / "benchmarks.md": "../benchmarks/results",
}
RESULTS = ROOT / "benchmarks" / "results"
SECTION = re.compile(r"^<!-- begin: (\S+) ([^>]+?) -->\n.*?^<!-- end -->$", re.MULTILINE | re.DOTALL)
WIDTH = 118
NO_FIGURE = "–"

Report = dict[str, Any]


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; fail where something would.")
@click.option(
    "--device",
    metavar="FOLDER",
    help="Take what benchmarks/results/FOLDER has, where a section shows another device's.",
)
def main(check: bool, device: str | None) -> None:
    """Bring the figures of the README and of docs/benchmarks.md up to date."""
    try:
        texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
        stale = update_plots("\n".join(texts.values()), device, check=check)
        written = {page: rewrite(text, device, folder=PAGES[page]) for page, text in texts.items()}
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    stale += [page.name for page in PAGES if written[page] != texts[page]]
    if check and stale:
        raise click.ClickException(
            f"not what the result files say: {', '.join(stale)}; run benchmarks/readme.py"
        )
    if not check:
        for page, text in written.items():
            page.write_text(text, encoding="utf-8")
    click.echo(f"{'as the result files say' if not stale else 'rewritten: ' + ', '.join(stale)}")


def rewrite(
    text: str, device: str | None = None, results: Path = RESULTS, folder: str = "benchmarks/results"
) -> str:
    """A page with every section as the result files say; ``folder`` is theirs, as the page's links have it.

    Raises ValueError for a section of an unknown kind, or whose file is not there or is no result.
    """

    def section(match: re.Match[str]) -> str:
        kinds, names = match[1].split("+"), places(match[2].split(), device, results)
        reports = [read_result(results / f"{name}.json") for name in names]
        parts = [part(kind, reports, names) for kind in kinds]
        body = "\n\n".join([*parts, origin(reports, names)]).replace("benchmarks/results/", f"{folder}/")
        return f"<!-- begin: {match[1]} {' '.join(names)} -->\n{body}\n<!-- end -->"

    return SECTION.sub(section, text)


def part(kind: str, reports: Sequence[Report], names: Sequence[str]) -> str:
    """What a kind makes of reports: Markdown."""
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
        files = places(names.split(), device, results)
        for kind in filter(plot.KINDS.__contains__, kinds.split("+")):
            figures = plot.KINDS[kind].figures([read_result(results / f"{name}.json") for name in files])
            for theme in plot.THEMES:
                file = results / plot_name(kind, files, theme)
                if plot.figures_in(file) != figures:
                    stale.append(file.name)
                    if not check:
                        plot.draw(kind, figures, theme, file)
    return stale


def places(names: Sequence[str], device: str | None, results: Path) -> list[str]:
    """Those of ``device``, where it has them all."""
    other = [f"{device}/{name.rpartition('/')[2]}" for name in names]
    return other if device and all((results / f"{name}.json").is_file() for name in other) else list(names)


def read_result(path: Path) -> Report:
    """Raises ValueError where there is none, or one that nobody could repeat.

    Changes that were not committed must be described in ``changes``.
    """
    if not path.is_file():
        raise ValueError(f"{path.name} is not there, and a section of the README shows it")
    report: Report = json.loads(path.read_text(encoding="utf-8"))
    if not report["commit"] or (report["uncommitted_changes"] and not report.get("changes")):
        raise ValueError(f"{path.name} was measured on a tree with uncommitted changes: no result")
    return report


def origin(reports: Sequence[Report], names: Sequence[str]) -> str:
    """Where, when and on which code, and who was to take part and did not."""
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
        else f"medians of {report['samples']}"
    )
    return f"{report['device']}{cores}, {threads}, {samples}, {report['date']}, commit {report['commit']}"


def wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def figure(values: dict[str, float] | None, digits: int, factor: float = 1.0) -> str:
    """``26.2 (25.3 to 28.2)``."""
    if values is None:
        return NO_FIGURE
    median, low, high = (f"{values[key] * factor:.{digits}f}" for key in ("median", "p10", "p90"))
    return f"{median} ({low} to {high})"


def megabytes(values: dict[str, Any]) -> str:
    """Of a step."""
    if "bytes_per_step" not in values:
        return NO_FIGURE
    count = values["bytes_per_step"] / 1e6
    return f"{count:.0f}" if count >= 10 else f"{count:.1f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in line)}|" for line in lines
    ).replace(" --- ", "---")


def all_measured(reports: Sequence[Report]) -> dict[str, dict[str, Any]]:
    return {name: values for report in reports for name, values in report["measured"].items()}


def decode(reports: Sequence[Report]) -> str:
    rows = [
        [
            name,
            megabytes(values),
            figure(values.get("tokens_per_second"), 1),
            figure(values.get("share_of_bandwidth"), 2),
        ]
        for name, values in all_measured(reports).items()
    ]
    return markdown(["", "MB a token", "tokens a second (p10 to p90)", "share of the bandwidth"], rows)


def throughput(reports: Sequence[Report]) -> str:
    """Steps on a GPU. The bandwidth beside them is that of a copy, no limit: no share of it is shown."""
    rows = [
        [
            name,
            megabytes(values),
            figure(values.get("tokens_per_second"), 1),
            figure(values.get("milliseconds_per_step"), 2),
            figure(values.get("bytes_per_second"), 2, 1e-12),
        ]
        for name, values in all_measured(reports).items()
    ]
    header = ["", "MB a token", "tokens a second (p10 to p90)", "ms a step (p10 to p90)"]
    return f"{markdown([*header, 'TB a second (p10 to p90)'], rows)}\n\n{copies(reports)}"


def copies(reports: Sequence[Report]) -> str:
    """The bandwidth beside the samples, over all contestants."""
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


def memory(reports: Sequence[Report]) -> str:
    def gigabytes(values: dict[str, Any], name: str) -> str:
        return f"{values[name] / 1e9:.1f} GB" if name in values else NO_FIGURE

    rows = [
        [
            name,
            figure(values.get("tokens_per_second"), 1),
            figure(values.get("share_of_bandwidth"), 2),
            gigabytes(values, "peak_resident_bytes"),
            gigabytes(values, "limit_bytes"),
        ]
        for name, values in all_measured(reports).items()
    ]
    header = ["", "tokens a second (p10 to p90)", "share of the bandwidth", "peak memory"]
    return markdown([*header, "weights, cache and 1 GB"], rows)


def prefill(reports: Sequence[Report]) -> str:
    rows = [[name, str(length), figure(values, 0)] for name, length, values in _prompts(reports)]
    return markdown(["", "tokens of the prompt", "read a second (p10 to p90)"], rows)


def _prompts(reports: Sequence[Report]) -> list[tuple[str, int, Any]]:
    """Contestant, length of its prompt, and the figure."""
    return [
        (
            name.partition(", ")[0],
            values.get("prompt_tokens", report["prompt_tokens"]),
            values.get("tokens_per_second"),
        )
        for report in reports
        for name, values in report["measured"].items()
    ]


def batch(reports: Sequence[Report]) -> str:
    rows = [
        [name, str(report["batch"]), figure(times and times["at_equal_bandwidth"], 2)]
        for report in reports
        for name, times in report["time_of_a_step_against_batch_1"].items()
    ]
    return markdown(["", "sequences", "time of a step against one of 1, at equal bandwidth"], rows)


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


def operators(reports: Sequence[Report]) -> str:
    rows = [
        [
            name,
            megabytes(values),
            figure(values.get("milliseconds_per_step"), 2),
            figure(values.get("share_of_bandwidth"), 2),
            figure(values.get("times_as_fast"), 2),
        ]
        for name, values in all_measured(reports).items()
    ]
    return markdown(["", "MB", "ms (p10 to p90)", "share of the bandwidth", "against PyTorch"], rows)


def load(reports: Sequence[Report]) -> str:
    rows = [
        [name, *(figure(values.get(f"{part}_seconds"), 2) for part in ("import", "load", "total"))]
        for name, values in all_measured(reports).items()
    ]
    return markdown(["seconds, median (p10 to p90)", "import", "load", "start to first token"], rows)


def accelerated(reports: Sequence[Report]) -> str:
    rows = [
        [
            case,
            *(
                figure(report["measured"][f"{case}, {side}"].get("tokens_per_second"), 1)
                for side in ("accelerated", "plain")
            ),
            figure(times, 2),
        ]
        for report in reports
        for case, times in report["times_as_fast"].items()
    ]
    return markdown(["tokens a second, median (p10 to p90)", "accelerated", "plain", "times as fast"], rows)


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


RENDERERS: dict[str, Callable[[Sequence[Report]], str]] = {
    function.__name__: function
    for function in (
        decode,
        demo,
        memory,
        prefill,
        batch,
        scaling,
        operators,
        load,
        accelerated,
        quality,
        throughput,
    )
}


def plot_name(kind: str, names: Sequence[str], theme: str) -> str:
    """``amd-epyc-2-cores/decode-0.7g-speed-dark.svg``."""
    return f"{names[0]}-{kind}-{theme}.svg"


def picture(kind: str, reports: Sequence[Report], names: Sequence[str]) -> str:
    """The plot for light and dark backgrounds; what it shows in words, for who cannot see it."""
    dark, light = (f"benchmarks/results/{plot_name(kind, names, theme)}" for theme in ("dark", "light"))
    words = plot.KINDS[kind].words(plot.KINDS[kind].figures(reports))
    return (
        f'<picture>\n<source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
        f'<img alt="{words}" src="{light}">\n</picture>'
    )


if __name__ == "__main__":
    main()

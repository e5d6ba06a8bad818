"""Draws what the README shows of the result files, as SVG, once for light backgrounds and once for dark ones.

``Kind.figures`` decides what is drawn, as plain numbers, which are stored in the SVG too: so a plot can be
compared with its result file without drawing it again. The same numbers and the same matplotlib give the
same bytes. ``readme`` calls this.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Report = dict[str, Any]
Figures = dict[str, Any]


@dataclass(frozen=True)
class Theme:
    """Colours that can be told apart on one background, in grey too."""

    text: str
    lines: str
    ours: str
    others: str
    limit: str


THEMES = {
    "light": Theme(text="#1f2328", lines="#d1d9e0", ours="#0969da", others="#8c959f", limit="#cf222e"),
    "dark": Theme(text="#e6edf3", lines="#3d444d", ours="#4493f8", others="#9198a1", limit="#ff7b72"),
}
OURS = "adept-fast"
WIDTH = 8.0  # inches of 100 pixels, about what a README is wide
BAR = 0.34  # inches
MARKERS = "osD^vPX"
_DESCRIPTION = "{http://purl.org/dc/elements/1.1/}description"


class NoPlotError(ValueError):
    """Something that cannot be drawn: the figures are not there, or matplotlib is not."""


# -- what is drawn --


def speed_figures(reports: Sequence[Report]) -> Figures:
    """Tokens a second of every row, measured and if memory were the only limit."""
    bars = [
        {
            "name": name,
            **_rounded(values["tokens_per_second"]),
            "limit": round(
                tokens_a_step(values)
                * values["read_bandwidth_bytes_per_second"]["median"]
                / values["bytes_per_step"],
                1,
            ),
        }
        for report in reports
        for name, values in report["measured"].items()
        if "bytes_per_step" in values
    ]
    if not bars:
        raise NoPlotError("the report has no row with figures; there is nothing to draw")
    return {"bars": bars}


def tokens_a_step(values: dict[str, Any]) -> int:
    """The number of sequences, from the two figures that were measured."""
    milliseconds = values["milliseconds_per_step"]["median"]
    return max(1, round(values["tokens_per_second"]["median"] * milliseconds / 1e3))


def speed_words(figures: Figures) -> str:
    said = [f"{bar['name']} {bar['median']} of {bar['limit']}" for bar in figures["bars"]]
    return f"Tokens a second, of those that the bandwidth of memory allows: {'; '.join(said)}."


def _axis_figures(reports: Sequence[Report], axis: str) -> Figures:
    """Milliseconds of a step and of reading its bytes, for the rows along an axis."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for report in reports:
        for values in _rows_along(report, axis):
            floor = values["bytes_per_step"] / values["read_bandwidth_bytes_per_second"]["median"]
            lines.setdefault(values.get("contestant") or values["format"], []).append(
                {
                    "at": values[axis],
                    **_rounded(values["milliseconds_per_step"], 3),
                    "limit": round(1e3 * floor, 3),
                    "megabytes": round(values["bytes_per_step"] / 1e6, 1),
                }
            )
    if not any(len(points) > 1 for points in lines.values()):
        raise NoPlotError(f"the report has no two points of {axis}; there is nothing to draw")
    return {"lines": {name: sorted(points, key=lambda point: point["at"]) for name, points in lines.items()}}


def _rows_along(report: Report, axis: str) -> list[dict[str, Any]]:
    """Rows of an axis of ``scaling``, or rows of ``decode`` with the other settings of the first."""
    rows = [values for values in report["measured"].values() if "bytes_per_step" in values]
    if report["benchmark"] == "scaling":
        return [values for values in rows if values["axis"] == axis]
    rows = [values for values in rows if values.get(axis) is not None]
    others = [name for name in ("zeros", "batch", "context") if name != axis]
    return [values for values in rows if all(values[name] == rows[0][name] for name in others)]


def context_figures(reports: Sequence[Report]) -> Figures:
    return _axis_figures(reports, "context")


def zeros_figures(reports: Sequence[Report]) -> Figures:
    return _axis_figures(reports, "zeros")


def fits_figures(reports: Sequence[Report]) -> Figures:
    """All points of ``scaling``: milliseconds of reading a step's bytes → of the step; and the lines."""
    clouds: dict[str, list[list[float]]] = {}
    for report in reports:
        for name, values in report["measured"].items():
            if "bytes_per_step" in values and values["axis"] != "threads":
                floor = values["bytes_per_step"] / values["read_bandwidth_bytes_per_second"]["median"]
                point = [round(1e3 * floor, 3), round(values["milliseconds_per_step"]["median"], 3)]
                clouds.setdefault(name.rpartition(" ")[0], []).append(point)
    if not clouds:
        raise NoPlotError("the report has no points of scaling; there is nothing to draw")
    fits = {
        name: [round(1e3 * fit["seconds"], 3), round(fit["times_the_floor"], 3)]
        for report in reports
        for name, fit in report["fits"].items()
        if name.endswith("all but batch")
    }
    return {"clouds": clouds, "fits": fits}


def fits_words(figures: Figures) -> str:
    said = [f"{name}: {a} ms and {b} times the limit" for name, (a, b) in figures["fits"].items()]
    return f"Milliseconds of a step, by those of reading its bytes. {'; '.join(said)}."


def context_words(figures: Figures) -> str:
    return f"Milliseconds of a step, by the tokens that stand before it: {_said(figures, '{:.0f}')}."


def zeros_words(figures: Figures) -> str:
    return f"Milliseconds of a step, by the share of hidden units that are 0: {_said(figures, '{:.0%}')}."


def cost_figures(reports: Sequence[Report]) -> Figures:
    """Users a day → dollars of a million tokens, and whether so many replicas were simulated."""
    names = {"all day": "dollars_per_million_tokens", "by the hour": "dollars_per_million_tokens_scaled"}
    return {
        "costs": {
            said: [
                [each["users"], round(each[key], 3), each["is_simulated"]]
                for report in reports
                for each in report["fleets"]
            ]
            for said, key in names.items()
        }
    }


def cost_words(figures: Figures) -> str:
    said = [
        f"{name} " + ", ".join(f"{dollars} at {users:.0f}" for users, dollars, _ in points)
        for name, points in figures["costs"].items()
    ]
    return f"Dollars of a million tokens, by users a day, with replicas that are there {'; '.join(said)}."


def _said(figures: Figures, at: str) -> str:
    return "; ".join(
        f"{fmt} "
        + ", ".join(
            f"{point['median']} at {at.format(point['at'])} (limit {point['limit']})" for point in points
        )
        for fmt, points in figures["lines"].items()
    )


def _rounded(figure: dict[str, float], digits: int = 1) -> dict[str, float]:
    return {name: round(figure[name], digits) for name in ("median", "p10", "p90")}


# -- how it is drawn --


def draw_speed(axes: Any, figures: Figures, theme: Theme) -> None:
    bars = figures["bars"]
    for at, bar in enumerate(bars):
        ours = bar["name"].startswith(OURS)
        axes.barh(at, bar["median"], height=0.62, color=theme.ours if ours else theme.others)
        axes.plot([bar["p10"], bar["p90"]], [at, at], color=theme.text, linewidth=1.2)
        axes.plot([bar["limit"]] * 2, [at - 0.42, at + 0.42], color=theme.limit, linewidth=2.5)
        furthest = max(bar["p90"], bar["limit"])
        axes.annotate(
            f"{bar['median']} of {bar['limit']}",
            (furthest, at),
            xytext=(6, 0),
            textcoords="offset points",
            verticalalignment="center",
            color=theme.text,
            fontsize=10,
        )
    axes.set_yticks(range(len(bars)), [bar["name"] for bar in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.22 * max(max(bar["p90"], bar["limit"]) for bar in bars))
    axes.set_xlabel("tokens a second (line: p10 to p90); red: if memory were the only limit")


def _draw_lines(axes: Any, figures: Figures, theme: Theme) -> None:
    for marker, (fmt, points) in zip(MARKERS, figures["lines"].items(), strict=False):
        at = [point["at"] for point in points]
        median = [point["median"] for point in points]
        below = [max(0.0, point["median"] - point["p10"]) for point in points]
        above = [max(0.0, point["p90"] - point["median"]) for point in points]
        axes.errorbar(
            at,
            median,
            yerr=[below, above],
            marker=marker,
            color=theme.ours,
            linewidth=1.5,
            capsize=3,
            label=fmt,
        )
        limits = [point["limit"] for point in points]
        label = "limit" if marker == MARKERS[0] else None
        axes.plot(at, limits, color=theme.limit, linestyle="--", label=label)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("milliseconds of a step")
    axes.legend(frameon=False, labelcolor=theme.text, fontsize=10)


def draw_context(axes: Any, figures: Figures, theme: Theme) -> None:
    _draw_lines(axes, figures, theme)
    axes.set_xlabel("tokens before it; dashed: its bytes over the bandwidth of memory")


def draw_zeros(axes: Any, figures: Figures, theme: Theme) -> None:
    _draw_lines(axes, figures, theme)
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_xlabel("hidden units that are 0; dashed: the bytes of the others over the bandwidth of memory")


def draw_fits(axes: Any, figures: Figures, theme: Theme) -> None:
    """A marker for each axis; of the first format filled, of further ones not."""
    from matplotlib.ticker import LogLocator, NullLocator

    points = [point for cloud in figures["clouds"].values() for point in cloud]
    kinds = list(dict.fromkeys(name.rpartition(" ")[2] for name in figures["clouds"]))
    formats = list(dict.fromkeys(name.rpartition(" ")[0] for name in figures["clouds"]))
    for name, cloud in figures["clouds"].items():
        fmt, _, kind = name.rpartition(" ")
        floors, times = zip(*cloud, strict=True)
        marker = MARKERS[kinds.index(kind) % len(MARKERS)]
        inside = theme.ours if fmt == formats[0] else "none"
        axes.plot(floors, times, marker, color=theme.ours, markerfacecolor=inside, label=name)
    span = [min(floor for floor, _ in points), max(floor for floor, _ in points)]
    axes.plot(span, span, color=theme.limit, linestyle="--", label="limit")
    for name, (constant, times) in figures["fits"].items():
        fitted = [constant + times * floor for floor in span]
        label = f"{name.split()[0]}: {constant} ms\n+ {times} × limit"
        axes.plot(span, fitted, color=theme.others, label=label)
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    axes.set_xlabel("milliseconds of reading a step's bytes at the bandwidth of memory")
    axes.set_ylabel("milliseconds of the step")
    axes.legend(
        frameon=False, labelcolor=theme.text, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.05)
    )


def draw_cost(axes: Any, figures: Figures, theme: Theme) -> None:
    """Filled markers are simulated, the others extrapolated."""
    for (name, points), colour in zip(figures["costs"].items(), (theme.ours, theme.others), strict=True):
        users, dollars, _ = zip(*points, strict=True)
        axes.plot(users, dollars, color=colour, label=name)
        for at, cost, is_simulated in points:
            inside = colour if is_simulated else "none"
            axes.plot(at, cost, MARKERS[0], color=colour, markerfacecolor=inside)
    axes.set(xscale="log", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("users a day (filled: simulated, not filled: extrapolated)")
    axes.set_ylabel("$ a million tokens")
    axes.legend(frameon=False, labelcolor=theme.text, fontsize=10)


@dataclass(frozen=True)
class Kind:
    """A plot: its numbers from result files, the same in words, and how it is drawn."""

    figures: Callable[[Sequence[Report]], Figures]
    words: Callable[[Figures], str]
    draw: Callable[[Any, Figures, Theme], None]


KINDS = {
    "speed": Kind(speed_figures, speed_words, draw_speed),
    "context": Kind(context_figures, context_words, draw_context),
    "zeros": Kind(zeros_figures, zeros_words, draw_zeros),
    "fits": Kind(fits_figures, fits_words, draw_fits),
    "cost": Kind(cost_figures, cost_words, draw_cost),
}


def draw(kind: str, figures: Figures, theme: str, file: Path) -> None:
    """Write a plot as SVG. Raises NoPlotError without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NoPlotError("plots are drawn by matplotlib: pip install 'adept-fast[bench]'") from error
    colours = THEMES[theme]
    settings: Any = {
        "font.family": "sans-serif",
        "font.size": 11,
        "svg.fonttype": "none",  # letters stay letters, which every browser draws at its best
        "svg.hashsalt": "adept-fast",
        **{f"{part}.color": colours.text for part in ("text", "xtick", "ytick")},
        "axes.labelcolor": colours.text,
        "axes.edgecolor": colours.lines,
        "axes.facecolor": "none",
        "grid.color": colours.lines,
    }
    with matplotlib.rc_context(settings):
        height = 1.0 + BAR * len(figures["bars"]) if "bars" in figures else 3.8
        picture = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = picture.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x" if "bars" in figures else "y", linewidth=0.8)
        axes.set_axisbelow(True)
        KINDS[kind].draw(axes, figures, colours)
        file.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "Date": None,
            "Creator": f"matplotlib {matplotlib.__version__}",
            "Description": json.dumps(figures, sort_keys=True, ensure_ascii=False),
        }
        picture.savefig(file, format="svg", transparent=True, metadata=about)


def figures_in(file: Path) -> Figures | None:
    """The numbers that a plot was drawn from; None if there is no plot."""
    if not file.is_file():
        return None
    description = next(ElementTree.parse(file).getroot().iter(_DESCRIPTION), None)
    return None if description is None or not description.text else json.loads(description.text)

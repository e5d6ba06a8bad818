"""The tables and the plot of simulations."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import plot, readme

RUN = {
    "benchmark": "simulate",
    "commit": "abc",
    "uncommitted_changes": False,
    "device": "A processor",
    "machine": {"cores": 3},
    "threads": 1,
    "samples": 5,
    "date": "2026-11-24",
}


def growth_report() -> dict[str, Any]:
    """Of one size of fleet, and users whom one replica serves or a hundred."""
    fleet = {"spare": 1, "dollars_a_day": 144.0, "dollars_a_day_scaled": 120.0}
    dollars = {"dollars_per_million_tokens": 30.0, "dollars_per_million_tokens_scaled": 25.0}
    few = {"users": 1000.0, "replicas": 1, "is_simulated": True, **fleet, **dollars}
    many = {"users": 1e6, "replicas": 99, "is_simulated": False, **fleet}
    many |= {"dollars_per_million_tokens": 1.25, "dollars_per_million_tokens_scaled": 0.75}
    figures = ("conversations_per_second", "answers_per_second", "tokens_per_second", "rows")
    seconds = ("time_to_first_token_seconds_p50", "time_to_first_token_seconds_p99")
    seconds += ("seconds_between_tokens_p50", "end_to_end_seconds_p50", "cached_share")
    simulated = dict.fromkeys(figures, 2.0) | dict.fromkeys(seconds, 0.5)
    return {"benchmark": "growth", "measured": {}, "simulated": {"4": simulated}, "fleets": [few, many]}


def rewritten(kinds: str, report: dict[str, Any], results: Path) -> str:
    """A page with a section of these kinds, of a result in a folder."""
    (results / "one").mkdir()
    (results / "one" / "x.json").write_text(json.dumps(RUN | report), encoding="utf-8")
    return readme.rewrite(f"<!-- begin: {kinds} one/x -->\n<!-- end -->\n", results=results)


def test_fleets_have_tables_of_what_they_serve_and_of_their_cost(tmp_path: Path) -> None:
    written = rewritten("capacity+fleets", growth_report(), tmp_path)
    assert "| 4 | 2.00 | 2.0 | 2 | 2.0 | 500 | 500 | 500.0 | 0.5 | 50% |\n" in written
    assert "| 1,000 | 1 + 1 | simulated | 144 | 120 | 30.00 | 25.00 |\n" in written
    assert "| 1,000,000 | 99 + 1 | extrapolated | 144 | 120 | 1.25 | 0.75 |\n" in written
    assert "A processor, 3 cores, 1 thread, which simulated it, 2026-11-24, commit abc: " in written


def test_a_simulation_stands_beside_what_it_simulates(tmp_path: Path) -> None:
    values: dict[str, Any] = {}
    for name, real, ours in (
        ("tokens_per_second", 100.0, 90.0),
        ("time_to_first_token_seconds_p50", 0.1, 0.112),
        ("end_to_end_seconds_p50", 2.0, 2.0),
    ):
        for prefix, value in (("", real), ("simulated_", ours), ("ratio_of_", ours / real)):
            values[prefix + name] = {"median": value, "p10": value, "p90": value}
    written = rewritten("reality", {"measured": {"2 replicas, closed loop": values}}, tmp_path)
    assert (
        "| 2 replicas, closed loop | 100 (100 to 100) | 90 | −10 % | 100 (100 to 100) | 112 | +12 % "
        "| 2.00 (2.00 to 2.00) | 2.00 | +0 % |\n"
    ) in written


@pytest.mark.parametrize("theme", plot.THEMES)
def test_the_cost_of_users_is_drawn(theme: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figures = plot.cost_figures([growth_report()])
    assert figures["costs"]["all day"] == [[1000.0, 30.0, True], [1e6, 1.25, False]]
    assert figures["costs"]["by the hour"] == [[1000.0, 25.0, True], [1e6, 0.75, False]]
    files = [tmp_path / "first.svg", tmp_path / "second.svg"]
    for file in files:
        plot.draw("cost", figures, theme, file)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert plot.figures_in(files[0]) == figures
    texts = {element.text for element in ElementTree.parse(files[0]).getroot().iter() if element.text}
    assert texts >= {"all day", "by the hour", "$ a million tokens"}
    assert "all day 30.0 at 1000, 1.25 at 1000000" in plot.cost_words(figures)

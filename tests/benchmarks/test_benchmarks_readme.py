"""The README's figures and plots are those of the result files."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import plot, readme

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = {page: page.read_text(encoding="utf-8") for page in readme.PAGES}
SHOWN = "\n".join(PAGES.values())
SECTIONS = re.findall(r"<!-- begin: (\S+) (.+?) -->\n(.*?)<!-- end -->", SHOWN, flags=re.DOTALL)
PLOTS = [
    (kind, names.split())
    for kinds, names, _ in SECTIONS
    for kind in kinds.split("+")
    if kind in ("speed", "context", "zeros", "fits")
]
SVG = "{http://www.w3.org/2000/svg}"
# A column's head → the figure that its cells show, and the unit of a cell.
COLUMNS = {
    "MB a token": ("bytes_per_step", 1e6),
    "MB": ("bytes_per_step", 1e6),
    "tokens a second (p10 to p90)": ("tokens_per_second", 1),
    "share of the bandwidth": ("share_of_bandwidth", 1),
    "read a second (p10 to p90)": ("tokens_per_second", 1),
    "ms (p10 to p90)": ("milliseconds_per_step", 1),
    "ms a step (p10 to p90)": ("milliseconds_per_step", 1),
    "TB a second (p10 to p90)": ("bytes_per_second", 1e12),
    "against PyTorch": ("times_as_fast", 1),
    "peak memory": ("peak_resident_bytes", 1e9),
    "weights, cache and 1 GB": ("limit_bytes", 1e9),
    "tokens of the prompt": ("prompt_tokens", 1),
    "import": ("import_seconds", 1),
    "load": ("load_seconds", 1),
    "start to first token": ("total_seconds", 1),
}


def read(name: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return report


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def holds(cell: str, value: Any, unit: float) -> None:
    """A cell shows a figure, or a number, rounded to the digits that it has."""
    values = [value[name] for name in ("median", "p10", "p90")] if isinstance(value, dict) else [value]
    shown = re.findall(r"\d+(?:\.(\d+))?", cell)
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", cell)]
    assert len(numbers) == len(values), cell
    for number, expected, decimals in zip(numbers, values, shown, strict=True):
        assert abs(number - expected / unit) <= 0.5001 * 10.0 ** -len(decimals), (cell, expected)


@pytest.mark.parametrize(("page", "text"), PAGES.items(), ids=lambda part: getattr(part, "name", ""))
def test_a_page_is_what_its_result_files_say(page: Path, text: str) -> None:
    assert readme.rewrite(text, folder=readme.PAGES[page]) == text
    assert (page.parent / readme.PAGES[page]).resolve() == RESULTS


def test_the_plots_are_what_their_result_files_say() -> None:
    assert readme.update_plots(SHOWN, None, check=True) == []


@pytest.mark.parametrize(("kinds", "names", "body"), SECTIONS, ids=lambda part: part[:40])
def test_a_table_has_the_numbers_of_its_files(kinds: str, names: str, body: str) -> None:
    reports = [read(name) for name in names.split()]
    for name, report in zip(names.split(), reports, strict=True):
        for fact in (report["device"], report["date"], f"commit {report['commit']}", f"results/{name}.json"):
            assert fact in body
    lines = [line for line in body.splitlines() if line.startswith("|")]
    head, rows = cells_of(lines[0]) if lines else [], [cells_of(line) for line in lines[2:]]
    columns = [(at, *COLUMNS[name]) for at, name in enumerate(head) if name in COLUMNS]
    if not columns:
        return
    measured = {name: values for report in reports for name, values in report["measured"].items()}
    assert len(rows) == len(measured)
    for row, (name, values) in zip(rows, measured.items(), strict=True):
        assert name.startswith(row[0])
        for at, figure, unit in columns:
            value = values.get(figure, reports[0].get(figure))
            assert (row[at] == "–") == (value is None)
            if value is not None:
                holds(row[at], value, unit)


def test_the_demos_table_has_the_numbers_of_its_file() -> None:
    (body,) = (body for kinds, _, body in SECTIONS if kinds == "demo")
    (name,) = (names for kinds, names, _ in SECTIONS if kinds == "demo")
    measured, rows = read(name)["measured"], [cells_of(line) for line in body.splitlines() if "|" in line][2:]
    figures = {
        "loading, seconds": ("load_seconds", 1),
        "time to first token, milliseconds": ("time_to_first_token_seconds", 1e-3),
        "decode, tokens a second": ("decode_tokens_per_second", 1),
        "weights and cache read, GB a second": ("decode_bytes_per_second", 1e9),
        "memory bandwidth, GB a second": ("read_bandwidth_bytes_per_second", 1e9),
    }
    assert [row[0] for row in rows] == list(figures)
    for row, (figure, unit) in zip(rows, figures.values(), strict=True):
        holds(row[1], measured[figure], unit)


def test_a_batchs_table_has_the_numbers_of_its_file() -> None:
    for kinds, names, body in SECTIONS:
        if kinds != "batch":
            continue
        times = read(names)["time_of_a_step_against_batch_1"]
        rows = [cells_of(line) for line in body.splitlines() if "|" in line][2:]
        for row, (name, value) in zip(rows, times.items(), strict=True):
            assert row[:2] == [name, str(read(names)["batch"])]
            holds(row[2], value["at_equal_bandwidth"], 1)


def test_the_table_of_accelerate_has_the_numbers_of_its_file() -> None:
    (body,) = (body for kinds, _, body in SECTIONS if kinds == "accelerated")
    report = read("amd-epyc-2-cores/accelerated")
    rows = [cells_of(line) for line in body.splitlines() if line.startswith("|")][2:]
    assert [row[0] for row in rows] == list(report["times_as_fast"])
    for case, *cells in rows:
        for cell, side in zip(cells, ("accelerated", "plain"), strict=False):
            holds(cell, report["measured"][f"{case}, {side}"]["tokens_per_second"], 1)
        holds(cells[2], report["times_as_fast"][case], 1)


def test_every_result_of_speed_and_memory_is_shown() -> None:
    shown = {name for _, names, _ in SECTIONS for name in names.split()}
    for path in RESULTS.glob("*/*.json"):
        is_table = not path.stem.startswith(("quality", "compare"))  # of which docs tell by hand
        if is_table and path.parent.name in {name.partition("/")[0] for name in shown}:
            assert f"{path.parent.name}/{path.stem}" in shown


def test_a_figure_that_was_changed_by_hand_is_noticed() -> None:
    (page,) = (page for page, text in PAGES.items() if "MB a token" in text)
    changed = PAGES[page].replace("MB a token", "GB", 1)
    assert readme.rewrite(changed, folder=readme.PAGES[page]) == PAGES[page]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder of results with one, of runtimes that are easily told apart."""
    report = {
        "benchmark": "decode",
        "commit": "abc",
        "uncommitted_changes": False,
        "device": "A processor",
        "machine": {"cores": 3},
        "threads": 1,
        "samples": 5,
        "date": "2026-11-24",
        "absent": {
            "openvino:int8": "No module named 'openvino'",
            "llama.cpp:F16": "no such interpreter",
            "openvino:int4": "No module named 'openvino'",
        },
        "measured": {
            "adept-fast:int4": row_of(50.0, 2e6, 200e6),
            "rival:int4": row_of(25.5, 3e6, 201e6),
            "busy:int4": {"clean_samples": 0, "dropped_total": 9},
        },
    }
    write(tmp_path / "one" / "decode-x.json", report)
    write(tmp_path / "other" / "decode-x.json", report | {"device": "Another"})
    return tmp_path


def row_of(speed: float, size: float, bandwidth: float) -> dict[str, Any]:
    def figure(value: float) -> dict[str, float]:
        return {"median": value, "p10": 0.9 * value, "p90": 1.1 * value}

    return {
        "bytes_per_step": size,
        "tokens_per_second": figure(speed),
        "milliseconds_per_step": figure(1e3 / speed),
        "read_bandwidth_bytes_per_second": figure(bandwidth),
        "share_of_bandwidth": figure(speed * size / bandwidth),
    }


def write(path: Path, report: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report), encoding="utf-8")


def test_a_section_is_written_and_the_rest_left_alone(results: Path) -> None:
    text = "before\n<!-- begin: decode one/decode-x -->\nold\n<!-- end -->\nafter\n"
    written = readme.rewrite(text, results=results)
    assert written == (
        "before\n<!-- begin: decode one/decode-x -->\n"
        "| | MB a token | tokens a second (p10 to p90) | share of the bandwidth |\n|---|---|---|---|\n"
        "| adept-fast:int4 | 2.0 | 50.0 (45.0 to 55.0) | 0.50 (0.45 to 0.55) |\n"
        "| rival:int4 | 3.0 | 25.5 (22.9 to 28.1) | 0.38 (0.34 to 0.42) |\n"
        "| busy:int4 | – | – | – |\n\n"
        "A processor, 3 cores, 1 thread, medians of 5, 2026-11-24, commit abc: "
        "[decode-x.json](benchmarks/results/one/decode-x.json).\n"
        "Absent: openvino:int8, openvino:int4 (No module named 'openvino').\n"
        "Absent: llama.cpp:F16 (no such interpreter).\n"
        "<!-- end -->\nafter\n"
    )
    assert readme.rewrite(written, results=results) == written


def test_another_devices_results_take_the_place_where_it_has_them(results: Path) -> None:
    text = "<!-- begin: decode one/decode-x -->\n<!-- end -->\n"
    other = readme.rewrite(text, "other", results)
    assert "begin: decode other/decode-x" in other
    assert "Another, 3 cores" in other
    assert "begin: decode one/decode-x" in readme.rewrite(text, "absent", results)


@pytest.mark.parametrize(
    ("section", "change", "reason"),
    [
        ("decode one/decode-y", {}, r"decode-y.json is not there, and a section of the README shows it"),
        ("graph one/decode-x", {}, "a section is of the kind 'graph'; expected one of decode, demo, memory"),
        ("decode one/decode-x", {"uncommitted_changes": True}, "uncommitted changes: no result"),
        ("decode one/decode-x", {"uncommitted_changes": True, "changes": ""}, "uncommitted changes: no res"),
        ("decode one/decode-x", {"commit": ""}, "no result"),
        ("speed one/decode-x", {"measured": {}}, "no row with figures"),
        ("context one/decode-x", {}, "no two points of context"),
    ],
)
def test_what_cannot_be_shown_is_refused(results: Path, section: str, change: Any, reason: str) -> None:
    path = results / "one" / "decode-x.json"
    write(path, json.loads(path.read_text(encoding="utf-8")) | change)
    with pytest.raises(ValueError, match=reason):
        readme.rewrite(f"<!-- begin: {section} -->\n<!-- end -->\n", results=results)


def test_changes_that_were_not_committed_are_said(results: Path) -> None:
    path = results / "one" / "decode-x.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    write(path, report | {"uncommitted_changes": True, "changes": "a loop goes the other way"})
    written = readme.rewrite("<!-- begin: decode one/decode-x -->\n<!-- end -->\n", results=results)
    assert "decode-x.json).\nOne change was not committed: a loop goes the other way.\n" in written


def test_throughput_is_bytes_over_time_and_a_copys_bandwidth_no_limit(results: Path) -> None:
    path = results / "one" / "decode-x.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    for name in ("adept-fast:int4", "rival:int4"):
        speed = {"median": 1.5e12, "p10": 1.25e12, "p90": 1.75e12}
        report["measured"][name] |= {"bytes_per_second": speed}
        report["measured"][name]["read_bandwidth_bytes_per_second"]["median"] *= 1e4
    write(path, report)
    written = readme.rewrite("<!-- begin: throughput one/decode-x -->\n<!-- end -->\n", results=results)
    assert (
        "| adept-fast:int4 | 2.0 | 50.0 (45.0 to 55.0) | 20.00 (18.00 to 22.00) | 1.50 (1.25 to 1.75) |\n"
        in written
    )
    assert "| busy:int4 | – | – | – | – |\n\nA copy beside the samples moved 2.00 to 2.01 TB" in written
    assert "share" not in written


def test_servers_have_a_table_of_loads_one_of_ratios_and_one_of_long_prompts(results: Path) -> None:
    def figures(**values: float) -> dict[str, Any]:
        return {
            name: {"median": value, "p10": 0.9 * value, "p90": 1.1 * value} for name, value in values.items()
        }

    path = results / "one" / "decode-x.json"
    measured = {
        "ours:x, closed loop": figures(
            tokens_per_second=800, time_to_first_token_seconds_p50=0.04, seconds_between_tokens_p50=0.007
        ),
        "ours:x, long prompt": figures(
            between_tokens_median=0.008, quiet_median=0.007, while_reading_p99=0.02, p99_over_median=1.5
        ),
    }
    ratio = figures(times=2.5)["times"]
    changes = {"measured": measured, "ratios": {"ours:x, closed loop": {"other:x, closed loop": ratio}}}
    write(path, json.loads(path.read_text(encoding="utf-8")) | changes)
    section = "<!-- begin: serve+serve-ratios+serve-long one/decode-x -->\n<!-- end -->\n"
    lines = [line for line in readme.rewrite(section, results=results).splitlines() if line.startswith("| o")]
    assert lines == [
        "| ours:x, closed loop | 800 (720 to 880) | 40 (36 to 44) | 7.0 (6.3 to 7.7) | – | – |",
        "| ours:x over other:x | 2.50 (2.25 to 2.75) |",
        "| ours:x, long prompt | 7.0 (6.3 to 7.7) | – | 20.0 (18.0 to 22.0) | 1.50 (1.35 to 1.65) | – | – |",
    ]


def test_the_limit_of_a_bar_is_the_bandwidth_beside_it_over_its_bytes(results: Path) -> None:
    report = json.loads((results / "one" / "decode-x.json").read_text(encoding="utf-8"))
    ours, rival = plot.speed_figures([report])["bars"]
    assert ours == {"name": "adept-fast:int4", "median": 50.0, "p10": 45.0, "p90": 55.0, "limit": 100.0}
    assert rival["limit"] == 67.0
    # Of a batch of four a step gives four tokens.
    report["measured"]["adept-fast:int4"]["milliseconds_per_step"]["median"] = 80.0
    assert plot.speed_figures([report])["bars"][0]["limit"] == 400.0


def scaling_report() -> dict[str, Any]:
    measured = {
        f"int8 {axis} {value}": row_of(100.0 / (1 + at), 1e6 * (1 + at), 1e9)
        | {"axis": axis, "value": value, "format": "int8", axis: value}
        for axis, values in {"context": (16, 64, 256), "zeros": (0.0, 0.9)}.items()
        for at, value in enumerate(values)
    }
    fit = {"seconds": 0.001, "times_the_floor": 1.25, "r_squared": 0.987, "points": 9}
    return {"benchmark": "scaling", "measured": measured, "fits": {"int8 all but batch": fit}}


def decode_sweep() -> dict[str, Any]:
    rows = [(zeros, batch, context) for zeros in (0.0, 0.9) for batch in (1, 4) for context in (128, 2048)]
    measured = {
        f"adept-fast:fp8, {zeros:.0%} zeros, batch {batch}, context {context}": row_of(10.0, 1e6, 1e9)
        | {"contestant": "adept-fast:fp8", "zeros": zeros, "batch": batch, "context": context}
        for zeros, batch, context in rows
    }
    return {"benchmark": "decode", "measured": measured}


@pytest.mark.parametrize(("axis", "values"), [("context", [16, 64, 256]), ("zeros", [0.0, 0.9])])
def test_an_axis_is_drawn_with_its_limit(axis: str, values: list[float]) -> None:
    points = plot.KINDS[axis].figures([scaling_report()])["lines"]["int8"]
    assert [point["at"] for point in points] == values
    assert [point["limit"] for point in points] == [float(1 + at) for at in range(len(values))]
    assert [point["median"] for point in points] == [10.0 * (1 + at) for at in range(len(values))]


@pytest.mark.parametrize(("axis", "values"), [("context", [128, 2048]), ("zeros", [0.0, 0.9])])
def test_of_decoding_an_axis_is_of_rows_that_are_alike_otherwise(axis: str, values: list[float]) -> None:
    points = plot.KINDS[axis].figures([decode_sweep()])["lines"]["adept-fast:fp8"]
    assert [point["at"] for point in points] == values


def test_all_points_are_drawn_with_the_line_through_them() -> None:
    figures = plot.fits_figures([scaling_report()])
    assert figures["clouds"] == {
        "int8 context": [[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]],
        "int8 zeros": [[1.0, 10.0], [2.0, 20.0]],
    }
    assert figures["fits"] == {"int8 all but batch": [1.0, 1.25]}


@pytest.mark.parametrize("theme", plot.THEMES)
@pytest.mark.parametrize("kind", ["speed", "context", "zeros", "fits"])
def test_a_plot_shows_its_numbers_and_is_the_same_each_time(
    kind: str, theme: str, results: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    decoded = json.loads((results / "one" / "decode-x.json").read_text(encoding="utf-8"))
    report = decoded if kind == "speed" else scaling_report()
    figures = plot.KINDS[kind].figures([report])
    files = [tmp_path / "first.svg", tmp_path / "second.svg"]
    for file in files:
        plot.draw(kind, figures, theme, file)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert plot.figures_in(files[0]) == figures
    texts = {element.text for element in ElementTree.parse(files[0]).getroot().iter(f"{SVG}text")}
    assert texts >= ({"50.0 of 100.0", "rival:int4"} if kind == "speed" else set())
    assert plot.THEMES[theme].text in files[0].read_text(encoding="utf-8")
    assert all(str(bar["median"]) in plot.KINDS[kind].words(figures) for bar in figures.get("bars", []))


@pytest.mark.parametrize("theme", plot.THEMES)
@pytest.mark.parametrize(("kind", "names"), PLOTS, ids=lambda part: str(part))
def test_the_readmes_plots_are_drawn_from_their_files(
    kind: str, names: list[str], theme: str, tmp_path: Path
) -> None:
    file = RESULTS / f"{names[0]}-{kind}-{theme}.svg"
    assert f"results/{names[0]}-{kind}-{theme}.svg" in SHOWN
    matplotlib = pytest.importorskip("matplotlib")
    if f"matplotlib {matplotlib.__version__}<" not in file.read_text(encoding="utf-8"):
        pytest.skip("drawn by another matplotlib")
    plot.draw(kind, plot.KINDS[kind].figures([read(name) for name in names]), theme, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == file.read_bytes()

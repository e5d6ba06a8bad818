"""Benchmarks run, and the README's figures are those of the result files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*/*.json"))
NEEDED = {"benchmark", "command", "date", "commit", "device", "threads", "versions", "samples", "measured"}


def rows_of(report: dict) -> list[str]:
    """The README's table of a result file of benchmarks/demo.py."""
    measured = report["measured"]

    def figures(name: str, factor: float, digits: int) -> str:
        values = measured[name]
        low, high = (f"{values[key] * factor:.{digits}f}" for key in ("p10", "p90"))
        return f"{values['median'] * factor:.{digits}f} | {low} to {high}"

    return [
        f"| loading, seconds | {figures('load_seconds', 1, 2)} |",
        f"| time to first token, milliseconds | {figures('time_to_first_token_seconds', 1000, 1)} |",
        f"| decode, tokens a second | {figures('decode_tokens_per_second', 1, 0)} |",
        f"| weights and cache read, GB a second | {figures('decode_bytes_per_second', 1e-9, 1)} |",
        f"| memory bandwidth, GB a second | {figures('read_bandwidth_bytes_per_second', 1e-9, 1)} |",
    ]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_result_says_where_it_comes_from(path: Path) -> None:
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report.keys() >= NEEDED
    assert all(report[name] for name in NEEDED)
    assert report["uncommitted_changes"] is False


def test_the_readme_has_the_figures_of_the_result_file() -> None:
    (path,) = (path for path in RESULTS if path.name == "demo.json")
    report = json.loads(path.read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for row in rows_of(report):
        assert row in readme
    assert report["device"] in readme
    assert report["command"] in readme


def test_the_demo_benchmark_runs(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("a result names its commit, so it takes a clone")
    output = tmp_path / "results" / "demo.json"
    done = subprocess.run(
        [sys.executable, "benchmarks/demo.py", "--samples", "3", "--output", str(output)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text(encoding="utf-8"))
    assert report.keys() >= NEEDED
    for name, figures in report["measured"].items():
        assert 0 < figures["p10"] <= figures["median"] <= figures["p90"], name
        assert name in done.stdout

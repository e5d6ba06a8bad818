"""benchmarks/accelerated.py runs, and compares what it says it compares."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.cases import accelerated

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmark_runs(tmp_path: Path) -> None:
    output = tmp_path / "accelerated.json"
    options = [
        *("--model", "demo", "--dtype", "float32", "--samples", "3", "--new-tokens", "3"),
        *("--prompt-tokens", "4", "--threads", "1", "--output", str(output)),
        # A test machine may be busy: no sample is dropped.
        *("--max-others-share", "9", "--max-bandwidth-change", "1"),
    ]
    done = CliRunner().invoke(accelerated.main, options, catch_exceptions=False, standalone_mode=False)
    report = json.loads(output.read_text(encoding="utf-8"))
    assert report["same_greedy_ids"] == {"demo float32": True}
    assert report["models"]["demo"]["hidden_size"] == 256
    cases = ["greedy", "sampling", "greedy, 4 rows"]
    assert list(report["times_as_fast"]) == [f"demo float32 {case}" for case in cases]
    for case, figure in report["times_as_fast"].items():
        assert 0 < figure["p10"] <= figure["median"] <= figure["p90"]
        assert figure["rounds"] == 3
        assert case in done.stdout
        for side in ("accelerated", "plain"):
            assert report["measured"][f"{case}, {side}"]["clean_samples"] == 3

"""The benchmark ``quality`` runs, and the figures of docs/benchmarks.md are those of its result file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks.cases import quality
from benchmarks.cases.quality import mean_kl_divergence, same_tokens

ROOT = Path(__file__).resolve().parents[2]

RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*/quality.json"))
FORMATS = ["float32", "int8", "int4-g32", "int4-g128"]


def rows_of(report: dict) -> list[str]:
    """The table of a result file, as docs/benchmarks.md has it."""
    rows = []
    for weights, figures in report["measured"].items():
        read = f"{figures['bytes_read_per_token'] / 1e6:.1f} MB"
        likelihood = f"{figures['log_likelihood_per_token']:.5f}".replace("-", "−")
        right, same = (f"{figures[name]:.2%}" for name in ("exact_match", "answers_as_in_float32"))
        divergence = f"{figures['kl_divergence_from_float32']:.6f}"
        rows.append(f"| `{weights}` | {read} | {likelihood} | {divergence} | {right} | {same} |")
    return rows


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_the_docs_have_the_figures_of_the_result_file(path: Path) -> None:
    report = json.loads(path.read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for row in rows_of(report):
        assert row in page
    assert report["command"] in page


def test_the_quality_benchmark_runs(tmp_path: Path) -> None:
    output = tmp_path / "results" / "quality.json"
    options = ["--every", "700", "--threads", "1", "--output", str(output)]
    CliRunner().invoke(quality.main, options, catch_exceptions=False, standalone_mode=False)
    report = json.loads(output.read_text(encoding="utf-8"))
    assert list(report["measured"]) == FORMATS
    for figures in report["measured"].values():
        assert figures["log_likelihood_per_token"] < 0
        assert 0.8 <= figures["exact_match"] <= 1
        assert figures["answers_as_in_float32"] >= 0.8
        assert 0 < figures["greedy_tokens_as_in_float32"] <= 1
    divergences = [report["measured"][weights]["kl_divergence_from_float32"] for weights in FORMATS]
    assert divergences == sorted(divergences)
    assert divergences[0] == 0 < divergences[1]
    assert divergences[-1] < 0.1
    assert report["measured"]["float32"]["greedy_tokens_as_in_float32"] == 1
    read = [report["measured"][weights]["bytes_read_per_token"] for weights in FORMATS]
    assert read == sorted(read, reverse=True)
    for row in rows_of(report):
        assert row.count("|") == 7


@pytest.mark.parametrize(
    ("texts", "share"),
    [
        ([[1, 2, 3], [4, 5]], 1.0),
        ([[1, 2, 9], [4, 5]], 0.8),
        ([[1, 9, 3], [4, 5]], 0.6),  # what is the same again behind a difference does not count
        ([[9, 2, 3], [4]], 0.2),
    ],
)
def test_greedy_tokens_count_up_to_the_first_that_differs(texts: list[list[int]], share: float) -> None:
    assert same_tokens(texts, [[1, 2, 3], [4, 5]]) == pytest.approx(share)


def test_kl_divergence_is_the_mean_over_tokens() -> None:
    baseline = torch.tensor([[0.5, 0.5], [0.25, 0.75]], dtype=torch.float64, device="cpu")
    other = torch.tensor([[0.25, 0.75], [0.25, 0.75]], dtype=torch.float64, device="cpu")
    by_hand = (0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)) / 2
    assert mean_kl_divergence(baseline.log(), other.log()) == pytest.approx(by_hand)

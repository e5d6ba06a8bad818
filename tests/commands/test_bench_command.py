"""``adept-fast bench``: what it measures adds up, and it advises only what it measured or can compute."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from adept_fast import Runtime
from adept_fast.checkpoint import demo_path, open_checkpoint
from adept_fast.commands import bench
from adept_fast.commands.bench import Sample, Stopwatch, step_bytes
from adept_fast.commands.cli import main
from adept_fast.quantization.formats import FORMATS
from tools.random_checkpoint import make_config, write_random

SAMPLE = Sample(seconds=0.1, bytes_read=1e6, bandwidth=2e7, zero_share=0.0, batch_size=1)
REPORT = {
    "tokens_per_second": 28.3,
    "limit_tokens_per_second": 34.1,
    "share_of_limit": 0.83,
    "bytes_per_step": 1144e6,
    "bandwidth_bytes_per_second": 39e9,
    "batch_size": 1,
    "advice": [],
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps and samples, and a probe that takes no time."""
    monkeypatch.setattr(bench, "_SAMPLES", 2)
    monkeypatch.setattr(bench, "_SAMPLE_SECONDS", 0.001)
    monkeypatch.setattr(bench.BandwidthProbe, "__init__", lambda self, device: None)
    monkeypatch.setattr(bench.BandwidthProbe, "measure", lambda self: 5e12)


def run(*arguments: str) -> Result:
    threads = torch.get_num_threads()
    try:
        return CliRunner().invoke(main, ["bench", *arguments])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_it_says_one_line() -> None:
    result = run()
    assert (result.exit_code, result.stderr) == (0, "")
    (line,) = result.stdout.splitlines()
    assert "tokens/s" in line
    assert "MB a token at" in line
    assert "GB/s" in line


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_its_figures_add_up() -> None:
    result = run("--json", "--batch-size", "2", "--context", "20", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["slowest"] <= report["tokens_per_second"] <= report["fastest"]
    assert report["batch_size"] == 2
    assert report["bandwidth_bytes_per_second"] == 5e12
    assert report["limit_tokens_per_second"] == pytest.approx(2 * 5e12 / report["bytes_per_step"], rel=0.01)
    share = report["tokens_per_second"] / report["limit_tokens_per_second"]
    assert report["share_of_limit"] == pytest.approx(share, rel=0.01)
    # The shipped model leaves rows out: some, and no more than the down-projections have.
    runtime = Runtime.load("demo", dtype="float32", device="cpu", progress=False)
    down = sum(layer.w_down_t.nbytes for layer in runtime.engine.runner.model.weights.layers)
    dense = runtime.bytes_read_per_step(0)
    cache = report["bytes_per_step"] - (dense - report["zero_share"] * down)
    assert 0.1 < report["zero_share"] < 0.99
    per_token = runtime.memory().cache_bytes_per_token
    assert 2 * 20 * per_token <= cache <= 2 * (20 + bench._MAX_STEPS) * per_token
    for advice in report["advice"]:
        if "weights" in advice:
            assert advice["bytes_per_step"] < report["bytes_per_step"]
            limit = 2 * 5e12 / advice["bytes_per_step"]
            assert advice["limit_tokens_per_second"] == pytest.approx(limit)
    assert [advice["weights"] for advice in report["advice"][:2]] == ["int8", "int4-g128"]


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose embedding has rows that no piece uses, and shapes that packing has to pad."""
    config = make_config(hidden=64, layers=2, heads=2, intermediate=192, vocab=4200, context=64)
    path = write_random(tmp_path_factory.mktemp("bench") / "padded", config)
    (path / "tokenizer.model").write_bytes((demo_path() / "tokenizer.model").read_bytes())
    return path


@pytest.mark.parametrize("fmt", ["float32", "float16", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("name", ["demo", "padded"])
def test_what_a_format_would_read_is_what_it_reads(name: str, fmt: str, padded: Path) -> None:
    path = padded if name == "padded" else "demo"
    options = {"weights": fmt} if fmt in ("int8", "int4") else {"dtype": fmt}
    runtime = Runtime.load(path, device="cpu", max_seq_len=32, progress=False, **options)
    checkpoint = open_checkpoint(path)
    assert runtime.tokenizer.vocab_size < checkpoint.config.vocab_size or name == "demo"
    weights = runtime.placement.weights
    assert step_bytes(checkpoint, runtime, weights) == runtime.bytes_read_per_step(0)
    down = sum(layer.w_down_t.nbytes for layer in runtime.engine.runner.model.weights.layers)
    skipped = step_bytes(checkpoint, runtime, weights) - step_bytes(checkpoint, runtime, weights, 0.25)
    assert skipped == pytest.approx(down / 4)
    # Another format's bytes are told without loading it.
    other = Runtime.load(path, device="cpu", max_seq_len=32, weights="int8", progress=False)
    assert step_bytes(checkpoint, runtime, FORMATS["int8"]) == other.bytes_read_per_step(0)


def test_the_line_is_as_the_readme_has_it() -> None:
    advice: list[dict[str, Any]] = [
        {"weights": "int8", "bytes_per_step": 575e6, "limit_tokens_per_second": 67.8},
        {"batch_size": 4, "tokens_per_second": 61.04},
        {"threads": 2, "tokens_per_second": 40.0},
    ]
    assert bench._as_line(REPORT | {"advice": advice}) == (
        "28.3 tokens/s of 34.1 possible (1.14 GB a token at 39 GB/s, 83%); "
        "--weights int8 would read 575 MB: up to 67.8 tokens/s; "
        "4 sequences at once gave 61.0 tokens/s in total; OMP_NUM_THREADS=2 gave 40.0 tokens/s"
    )
    assert "1.14 GB a step" in bench._as_line(REPORT | {"batch_size": 4})
    assert bench._as_line(REPORT | {"tokens_per_second": 40.0, "share_of_limit": 1.17}) == (
        "40.0 tokens/s, more than the 34.1 of memory (1.14 GB a token at 39 GB/s): a cache holds the weights"
    )


def stopwatch(monkeypatch: pytest.MonkeyPatch, seconds: float) -> Stopwatch:
    """One that always gives the same."""
    made = Stopwatch.__new__(Stopwatch)
    made.device = torch.device("cpu")
    monkeypatch.setattr(
        made, "sample", lambda batch_size: replace(SAMPLE, seconds=seconds, batch_size=batch_size)
    )
    return made


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.3, [{"batch_size": 4, "tokens_per_second": 4 / 0.3}]), (0.5, [])]
)
def test_a_larger_batch_is_advised_where_it_was_faster(
    monkeypatch: pytest.MonkeyPatch, seconds: float, said: list[Any]
) -> None:
    assert bench._more_at_once(stopwatch(monkeypatch, seconds), [SAMPLE], 4) == said
    assert bench._more_at_once(stopwatch(monkeypatch, seconds), [replace(SAMPLE, batch_size=4)], 4) == []


@pytest.mark.parametrize(("seconds", "advised"), [(0.05, [1, 6]), (0.1, []), (0.0999, [])])
def test_other_numbers_of_threads_are_advised_where_they_were_faster(
    monkeypatch: pytest.MonkeyPatch, seconds: float, advised: list[int]
) -> None:
    now = []
    monkeypatch.setattr(bench, "available_cores", lambda: 6)
    monkeypatch.setattr(bench.torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(bench.torch, "set_num_threads", now.append)
    advice = bench._other_threads(stopwatch(monkeypatch, seconds), [SAMPLE])
    assert [entry["threads"] for entry in advice] == advised
    assert now == [1, 2, 6, 2]  # each is tried, and taken back


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_packed_checkpoint_is_not_told_to_pack(tmp_path: Path) -> None:
    converted = CliRunner().invoke(main, ["convert", "demo", str(tmp_path / "packed"), "--weights", "int8"])
    assert converted.exit_code == 0, converted.output
    result = run("--checkpoint", str(tmp_path / "packed"), "--json")
    report = json.loads(result.stdout)
    assert not [advice for advice in report["advice"] if "weights" in advice]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--context", "600"], "context is 600; expected at most 507, which leaves 4 steps"),
        (["--max-seq-len", "30", "--context", "26"], "context is 26; expected at most 25"),
        (["--checkpoint", "/absent"], "/absent: there is no such file"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1

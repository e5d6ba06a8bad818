"""Each benchmark runs at toy size, and measures what it says."""

from __future__ import annotations

import collections
import json
import os
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
import torch
from click.testing import CliRunner
from own_process import python_file, run_module

from benchmarks import gemm_rate
from benchmarks.cases import load, memory, operator_calls, operators, scaling, speed
from benchmarks.options import Arguments
from benchmarks.result_file import check_report
from benchmarks.samples import Limits, Sample, Samples
from benchmarks.workers import AbsentError, Variant
from tools.random_checkpoint import PRESETS, make_config, write_random

ROOT = Path(__file__).resolve().parents[2]
IN_A_CLONE = pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="a result names its commit, so it takes a clone"
)


def invoke(program: click.Command, *arguments: str) -> None:
    """Run a program in this process, and leave torch with the threads that it had."""
    threads = torch.get_num_threads()
    try:
        CliRunner().invoke(program, arguments, catch_exceptions=False, standalone_mode=False)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = make_config(hidden=64, layers=2, heads=4, intermediate=256, vocab=4200, context=128)
    return write_random(tmp_path_factory.mktemp("toy") / "toy", config)


# A test machine may be busy: no sample is dropped, and no thread waits for another that has no core.
ANY_SAMPLE = ["--samples", "3", "--max-others-share", "9", "--max-bandwidth-change", "1", "--threads", "1"]


@IN_A_CLONE
def test_the_demo_benchmark_runs(tmp_path: Path) -> None:
    output = tmp_path / "results" / "demo.json"
    done = run_module("benchmarks", "demo", "--samples", "3", "--output", output)
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text(encoding="utf-8"))
    check_report(report)
    for name, values in report["measured"].items():
        assert 0 < values["p10"] <= values["median"] <= values["p90"], name
        assert name in done.stdout


@IN_A_CLONE
def test_prefill_batch_and_memory_run(toy: Path, tmp_path: Path) -> None:
    ours = ["--checkpoint", str(toy), "--runtime", "adept-fast:float32", *ANY_SAMPLE]
    forks = ["--python", f"adept-fast={python_file(tmp_path / 'python')}"]
    for name, (program, more) in {
        "prefill": (
            speed.prefill,
            ["--prompt-tokens", "20", "--prompt-tokens", "7", "--prompt-tokens", "128", *forks],
        ),
        "batch": (speed.batch, ["--batch", "2", "--steps", "4", *forks]),
        "memory": (memory.main, ["--context", "64", "--steps", "4", "--runtime", "eager:float32"]),
    }.items():
        output = tmp_path / f"{name}.json"
        invoke(program, *ours, *more, "--output", str(output))
        report = json.loads(output.read_text(encoding="utf-8"))
        check_report(report)
        assert report["benchmark"] == name
        if name == "prefill":
            lengths = {name: values["prompt_tokens"] for name, values in report["measured"].items()}
            assert lengths == {f"adept-fast:float32, {length} tokens": length for length in (7, 20)}
            assert report["absent"] == {"128 tokens": "the checkpoint's context is 128 tokens"}
        if name == "batch":
            (times,) = report["time_of_a_step_against_batch_1"].values()
            assert times["rounds"] == 3
        if name == "memory":
            ours, baseline = report["measured"].values()
            for values in (ours, baseline):
                assert 0 < values["peak_anonymous_bytes"] <= values["peak_resident_bytes"]
            assert ours["within_limit"] == (ours["peak_resident_bytes"] <= ours["limit_bytes"])
            assert "limit_bytes" not in baseline  # which states no plan


@IN_A_CLONE
def test_prompts_of_a_random_model_beside_the_rate_of_a_gemm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate is pretended: it is measured on a GPU alone."""
    monkeypatch.setattr(speed, "measure_gemm_rates", lambda config, device: {"512": 1e12, "4096": 2e12})
    model = ["--model", "tiny", "--layers", "1", "--prompt-tokens", "20", "--runtime", "adept-fast:float32"]
    forks = ["--python", f"adept-fast={python_file(tmp_path / 'python')}"]
    output = tmp_path / "prefill.json"
    invoke(speed.prefill, *model, *ANY_SAMPLE, *forks, "--output", str(output))
    report = json.loads(output.read_text(encoding="utf-8"))
    check_report(report)
    assert (report["layers"], report["model"]["num_hidden_layers"]) == (1, 1)
    assert report["gemm_operations_per_second"] == {"512": 1e12, "4096": 2e12}
    (row,) = report["measured"].values()
    share, milliseconds = row["share_of_gemm_rate"], row["time_to_first_token_milliseconds"]
    assert share["p10"] <= share["median"] <= share["p90"]
    operations = gemm_rate.prompt_operations(report["model"], 20)
    assert share["median"] * milliseconds["median"] == pytest.approx(1e3 * operations / 2e12)


def test_the_operations_of_a_prompt() -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 3, "vocab_size": 100}
    layer = 4 * 8 * 8 + 2 * 8 * 32
    assert gemm_rate.prompt_operations(sizes, 1) == 2 * (3 * layer + 8 * 100) + 3 * 4 * 8
    # The last of three tokens attends to three, the vocabulary is multiplied once.
    assert gemm_rate.prompt_operations(sizes, 3) == 2 * (3 * 3 * layer + 8 * 100) + 3 * 4 * 8 * (1 + 2 + 3)
    assert gemm_rate.measure_gemm_rates(sizes, torch.device("cpu")) == {}
    assert gemm_rate.rate(torch.randn(4, 8), torch.randn(32, 8)) > 0


def arguments_of(checkpoint: Path, *variants: str) -> Arguments:
    limits = Limits(others_share=9.0, attempts=1)
    return Arguments(3, 1, limits, None, checkpoint, tuple(map(Variant.parse, variants)))


@pytest.mark.parametrize("state", [load.WARM, load.DROPPED])
def test_a_start_is_timed_from_a_new_process_to_the_first_token(toy: Path, state: str) -> None:
    (variant,) = (arguments := arguments_of(toy, "adept-fast:float32")).variants
    try:
        started = load.start(arguments, variant, state)
    except load.StillResidentError as error:
        pytest.skip(str(error))
    assert (started.resident_share == 1) if state == load.WARM else (started.resident_share <= 0.05)
    assert list(started.seconds) == ["import", "load", "first_token", "total"]
    assert sum(list(started.seconds.values())[:3]) == pytest.approx(started.seconds["total"])
    assert min(started.seconds.values()) > 0
    assert "torch" in started.version


@IN_A_CLONE
def test_load_takes_turns_and_names_who_is_absent(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []

    def start(arguments: Arguments, variant: Variant, state: str) -> load.Start:
        order.append((variant.runtime, state))
        if variant.runtime == "openvino":
            raise AbsentError("No module named 'openvino'")
        if state == load.DROPPED:
            raise load.StillResidentError("12% of the files stayed in memory")
        return load.Start(dict.fromkeys(load.PARTS, float(len(order))), 1.0, {"torch": "2"})

    monkeypatch.setattr(load, "start", start)
    # These starts take no time, of which any that others took meanwhile would be an endless share.
    no_time = SimpleNamespace(others_share_since=lambda before: 0.0)
    monkeypatch.setattr(load, "CpuTime", SimpleNamespace(now=lambda pids: no_time))
    names = ("adept-fast:int8", "openvino:int8", "eager:float32")
    chosen = [part for name in names for part in ("--runtime", name)]
    output = tmp_path / "load.json"
    invoke(load.main, "--checkpoint", str(toy), *ANY_SAMPLE, *chosen, "--output", str(output))
    report = json.loads(output.read_text(encoding="utf-8"))
    check_report(report)
    assert report["absent"] == {
        "adept-fast:int8, dropped": "12% of the files stayed in memory",
        "openvino:int8, warm": "No module named 'openvino'",
        "openvino:int8, dropped": "No module named 'openvino'",
        "eager:float32, dropped": "12% of the files stayed in memory",
    }
    # The first round is to warm up; after it each begins with another.
    assert order[6:8] == [("adept-fast", "warm"), ("eager", "warm")]
    assert report["measured"]["eager:float32, warm"]["clean_samples"] == 3
    assert report["measured"].keys() == {"adept-fast:int8, warm", "eager:float32, warm"}


def test_what_is_resident_is_looked_up_and_can_be_dropped(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    file = tmp_path / "nested" / "file"
    file.parent.mkdir()
    file.write_bytes(bytes(300_001))
    load.read(tmp_path)
    assert load.resident_share(tmp_path) == 1
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if load.resident_share(tmp_path) == 1:
        pytest.skip("this file system keeps its files in memory")
    load.read(tmp_path)
    load.drop(tmp_path)
    assert load.resident_share(tmp_path) == 0
    load.read(tmp_path)
    assert load.resident_share(tmp_path) == 1


@IN_A_CLONE
def test_operators_are_timed_against_torch(tmp_path: Path) -> None:
    output = tmp_path / "operators.json"
    arguments = ["--model", "tiny", "--positions", "64", "--shortest-sample", "0.001"]
    arguments += [
        "--operator",
        "mlp",
        "--operator",
        "rotary_append",
        "--format",
        "bfloat16",
        "--format",
        "int4",
    ]
    invoke(operators.main, *arguments, *ANY_SAMPLE, "--output", str(output))
    report = json.loads(output.read_text(encoding="utf-8"))
    check_report(report)
    names = [name.partition(": ")[2] for name in report["measured"] if name.startswith("mlp, 1 token")]
    assert names == ["adept-fast:bfloat16", "adept-fast:int4", "torch:float16", "torch:bfloat16"]
    ours, torchs = (report["measured"][f"mlp, 1 token: {name}:bfloat16"] for name in ("adept-fast", "torch"))
    # Of 512 rows of 128 a tenth is read, and the other matrix whole.
    assert torchs["bytes_per_step"] - ours["bytes_per_step"] == pytest.approx(0.9 * 512 * 128 * 2, rel=0.02)
    assert ours["times_as_fast"]["median"] > 0
    assert "times_as_fast" not in torchs
    rotary = report["measured"]["rotary_append, 1 token: adept-fast:float16"]
    assert "share_of_bandwidth" not in rotary  # what it reads was just written


@pytest.mark.parametrize("name", [*operator_calls.OPERATORS, *operator_calls.OF_PROMPTS])
def test_the_torch_calls_compute_what_the_operator_does(name: str) -> None:
    config = make_config(hidden=64, layers=1, heads=2, intermediate=256, vocab=4224, context=32)
    operands = operator_calls.Operands(config, torch.device("cpu"), tokens=3, zeros=0.5, positions=32)
    fmt = "float16" if name in operator_calls.OF_CACHE else "float32"
    ours, theirs = (operands.call(name, who, fmt, 0).run() for who in ("adept-fast", "torch"))
    error = (ours.reshape(theirs.shape) - theirs.float()).norm() / theirs.float().norm()
    assert error < (2e-3 if fmt == "float16" else 1e-5)


@IN_A_CLONE
def test_scaling_runs_and_fits_each_axis(tmp_path: Path) -> None:
    output = tmp_path / "scaling.json"
    arguments = ["--model", "tiny", "--format", "float32", "--layers", "1,2", "--hidden", "128"]
    arguments += [
        "--context",
        "16,32",
        "--batch",
        "1,2",
        "--zeros",
        "0,0.9",
        "--threads",
        "1,2",
        "--steps",
        "4",
    ]
    invoke(scaling.main, *ANY_SAMPLE, *arguments, "--output", str(output))
    report = json.loads(output.read_text(encoding="utf-8"))
    check_report(report)
    measured = report["measured"]
    axes = {"layers": 2, "hidden": 1, "context": 2, "batch": 2, "zeros": 2, "threads": 2}
    assert collections.Counter(values["axis"] for values in measured.values()) == axes
    layer = measured["float32 layers 2"]["bytes_per_step"] - measured["float32 layers 1"]["bytes_per_step"]
    assert layer == pytest.approx(4 * (4 * 128 * 128 + (2 - 0.5) * 128 * 512), rel=0.05)
    few, many = (measured[f"float32 zeros {zeros}"]["zero_share"] for zeros in ("0.9", "0.0"))
    assert (few, many) == (pytest.approx(0.9, abs=0.05), pytest.approx(0, abs=0.01))
    assert "own_bandwidth" in measured["float32 threads 1"]
    assert report["fits"].keys() == {"float32 all but batch"}  # an axis has two points here


def test_a_line_is_fitted_to_the_time_of_reading() -> None:
    # 3 ms and twice the floor, at bandwidths that differ: only beside its own is each on the line.
    sizes = {1e6: 1e9, 5e6: 4e9, 9e6: 2e9}
    samples: dict[str, Samples] = {
        f"int8 hidden {at}": [
            None,
            *(Sample(0.003 + 2 * size / speed, size, speed) for speed in (0.5 * near, near, 2 * near)),
        ]
        for at, (size, near) in enumerate(sizes.items())
    }
    line = scaling.fits(samples)["int8 hidden"]
    assert line == {
        "seconds": pytest.approx(0.003),
        "times_the_floor": pytest.approx(2),
        "r_squared": pytest.approx(1),
        "points": 3,
    }
    assert scaling.line_through([(1.0, 2.0)] * 3) is None
    assert scaling.line_through([(1.0, 2.0), (2.0, 3.0)]) is None
    # By hand: through (0, 0), (1, 2) and (2, 1) goes 0.5 + 0.5 · x, which leaves 1.5 of a spread of 2.
    line = scaling.line_through([(0.0, 0.0), (1.0, 2.0), (2.0, 1.0)]) or {}
    assert [line[name] for name in ("seconds", "times_the_floor", "r_squared")] == pytest.approx(
        [0.5, 0.5, 0.25]
    )


def test_an_axis_goes_through_the_preset() -> None:
    lists = {"layers": [1, 2], "context": [16, 32], "threads": [1, 2]}
    points = scaling.all_points(PRESETS["tiny"], ["int8"], lists)
    assert list(points) == [f"int8 {axis} {value}" for axis, values in lists.items() for value in values]
    assert points["int8 layers 2"] == points["int8 context 16"] == points["int8 threads 2"]
    assert (points["int8 threads 1"].threads, points["int8 layers 1"].context) == (1, 16)

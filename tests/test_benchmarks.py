"""Benchmarks run, and the README's figures are those of the result files."""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "rivals"), str(ROOT / "tools")]

from contest import Contestant, Sample, figures, ratios  # noqa: E402
from harness import CpuTime, check_report, describe_run, summarise, table, without_folders  # noqa: E402
from protocol import cache_elements, matrix_elements, vector_elements  # noqa: E402
from random_checkpoint import make_config, write_random  # noqa: E402

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


def decode_rows_of(report: dict) -> list[str]:
    """The README's table of a result file of benchmarks/decode.py."""

    def figures(values: dict, digits: int) -> str:
        low, high = (f"{values[key]:.{digits}f}" for key in ("p10", "p90"))
        return f"{values['median']:.{digits}f} ({low} to {high})"

    return [
        f"| {name} | {values['bytes_per_step'] / 1e6:.0f} | {figures(values['tokens_per_second'], 1)} | "
        f"{figures(values['share_of_bandwidth'], 2)} |"
        for name, values in report["measured"].items()
    ]


def memory_rows_of(report: dict) -> list[str]:
    """The README's table of a result file of benchmarks/memory.py."""

    def figures(values: dict, digits: int) -> str:
        return f"{values['median']:.{digits}f} ({values['p10']:.{digits}f} to {values['p90']:.{digits}f})"

    return [
        f"| `{name.removeprefix('adept-fast:')}` | {figures(values['tokens_per_second'], 1)} | "
        f"{figures(values['share_of_bandwidth'], 2)} | {values['peak_resident_bytes'] / 1e9:.1f} GB | "
        f"{values['limit_bytes'] / 1e9:.1f} GB |"
        for name, values in report["measured"].items()
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


@pytest.mark.parametrize(
    "path", [path for path in RESULTS if path.name.startswith("decode-")], ids=lambda path: path.name
)
def test_the_readme_has_the_figures_of_decoding(path: Path) -> None:
    report = json.loads(path.read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for row in decode_rows_of(report):
        assert row in readme
    assert path.name in readme
    assert report["commit"][:7] in readme


@pytest.mark.parametrize(
    "path", [path for path in RESULTS if path.name.startswith("memory-")], ids=lambda path: path.name
)
def test_the_readme_has_the_figures_of_memory(path: Path) -> None:
    report = json.loads(path.read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for row in memory_rows_of(report):
        assert row in readme
    assert path.name in readme


def test_the_readme_has_the_figures_of_prompts() -> None:
    (path,) = (path for path in RESULTS if path.name == "prefill-0.7g.json")
    measured = json.loads(path.read_text(encoding="utf-8"))["measured"]
    ours, theirs = (
        [f"{measured[name]['tokens_per_second']['median']:.0f}" for name in names]
        for names in (
            ["adept-fast:bfloat16", "adept-fast:int8", "adept-fast:int4", "adept-fast:float16"],
            ["transformers:bfloat16"],
        )
    )
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert (
        f"is read at {ours[0]} tokens a second in bfloat16, {ours[1]} with `int8`, {ours[2]} with `int4` and "
        f"{ours[3]} in float16, where transformers in bfloat16 reads {theirs[0]} (`{path.name}`)"
    ) in readme


def test_the_demo_benchmark_runs(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("a result names its commit, so it takes a clone")
    output = tmp_path / "results" / "demo.json"
    done = run_benchmark("demo", "--samples", "3", "--output", str(output))
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text(encoding="utf-8"))
    assert report.keys() >= NEEDED
    for name, values in report["measured"].items():
        assert 0 < values["p10"] <= values["median"] <= values["p90"], name
        assert name in done.stdout


def run_benchmark(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = make_config(hidden=64, layers=2, heads=4, intermediate=256, vocab=4200, context=128)
    return write_random(tmp_path_factory.mktemp("toy") / "toy", config)


# A test machine may be busy: no sample is dropped.
ANY_SAMPLE = ["--samples", "3", "--max-others-share", "9", "--max-bandwidth-change", "1"]


def test_decode_runs_ours_and_a_rival_and_names_who_is_absent(toy: Path, tmp_path: Path) -> None:
    output = tmp_path / "decode.json"
    done = run_benchmark(
        *("decode", "--checkpoint", str(toy), "--output", str(output), "--steps", "6", *ANY_SAMPLE),
        *("--contestant", "adept-fast:float32", "--contestant", "transformers:float32"),
        *("--contestant", "openvino:int8", "--python", "openvino=/no/such/python"),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text(encoding="utf-8"))
    check_report(report)
    assert report["absent"].keys() == {"openvino:int8"}
    assert "openvino:int8 is absent" in done.stdout
    assert report["measured"].keys() == {"adept-fast:float32", "transformers:float32"}
    for name, values in report["measured"].items():
        assert name in done.stdout
        assert values["clean_samples"] == 3
        assert values["share_of_bandwidth"]["median"] > 0
    ours = report["measured"]["adept-fast:float32"]
    assert ours["zero_share"] == pytest.approx(0.5, abs=0.1)
    assert ours["bytes_per_step"] < ours["weight_bytes"]
    speedup = report["ratios"]["adept-fast:float32"]["transformers:float32"]["speedup"]
    assert speedup["median"] > 0
    assert str(toy.parent) not in output.read_text(encoding="utf-8")


def test_prefill_batch_and_memory_run(toy: Path, tmp_path: Path) -> None:
    ours = ["--checkpoint", str(toy), "--contestant", "adept-fast:float32", *ANY_SAMPLE]
    for name, more in {
        "prefill": ["--prompt-tokens", "20"],
        "batch": ["--batch", "2", "--steps", "4"],
        "memory": ["--context", "64", "--steps", "4"],
    }.items():
        output = tmp_path / f"{name}.json"
        done = run_benchmark(name, *ours, *more, "--output", str(output))
        assert done.returncode == 0, done.stderr
        report = json.loads(output.read_text(encoding="utf-8"))
        check_report(report)
        assert report["benchmark"] == name
        if name == "batch":
            (times,) = report["time_of_a_step_against_batch_1"].values()
            assert times["rounds"] == 3
        if name == "memory":
            (values,) = report["measured"].values()
            assert 0 < values["peak_anonymous_bytes"] <= values["peak_resident_bytes"]


def test_a_figure_is_the_median_and_the_tenths() -> None:
    assert summarise(range(11)) == {"median": 5.0, "p10": 1.0, "p90": 9.0}


def test_a_table_has_its_columns_below_each_other() -> None:
    assert table(["a", "bb"], [["long", "1"], ["x", "22"]]) == "a     bb\nlong   1\nx     22"


def test_a_report_is_held_to_its_schema() -> None:
    report = describe_run("test", 3, 2) | {"measured": {"x": summarise([1.0, 2.0, 3.0])}}
    check_report(report)
    with pytest.raises(ValueError, match="lacks machine"):
        check_report({name: value for name, value in report.items() if name != "machine"})
    turned = {"median": 1.0, "p10": 2.0, "p90": 3.0}
    with pytest.raises(ValueError, match="expected p10 ≤ median ≤ p90"):
        check_report(report | {"measured": {"ours": {"speed": turned}}})


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("/a/b/model", "…/model"),
        ("llama.cpp=/a/bin/python", "llama.cpp=…/python"),
        ("benchmarks/x.py", "benchmarks/x.py"),
        ("--samples", "--samples"),
    ],
)
def test_a_command_is_told_without_this_machines_folders(argument: str, shown: str) -> None:
    assert without_folders(argument) == shown


def test_contestants_are_a_runtime_and_a_format() -> None:
    assert str(Contestant.parse("llama.cpp:Q8_0")) == "llama.cpp:Q8_0"
    for wrong in ("llama.cpp", "llama.cpp:int8", "nobody:int8", ""):
        with pytest.raises(ValueError, match="is no contestant; expected one of"):
            Contestant.parse(wrong)


def test_shares_and_ratios_are_of_samples_beside_each_other() -> None:
    samples = {
        "adept-fast:int8": [Sample(0.5, 100.0, 400.0), None, Sample(1.0, 100.0, 200.0)],
        "llama.cpp:Q8_0": [Sample(1.0, 100.0, 400.0), Sample(1.0, 100.0, 400.0), Sample(2.0, 100.0, 400.0)],
    }
    ours = figures(samples["adept-fast:int8"], collections.Counter(), tokens_per_step=2)
    assert ours["share_of_bandwidth"] == summarise([0.5, 0.5])
    assert ours["tokens_per_second"] == summarise([4.0, 2.0])
    (ratio,) = ratios(samples)["adept-fast:int8"].values()
    assert (ratio["rounds"], ratio["speedup"]["median"]) == (2, 2.0)
    assert ratio["at_equal_bandwidth"] == summarise([2.0, 4.0])


def test_nothing_clean_gives_counts_and_no_figures() -> None:
    none = figures([None, None], collections.Counter({"the bandwidth changed": 5}))
    assert none == {
        "clean_samples": 0,
        "dropped_samples": {"the bandwidth changed": 5},
        "dropped_total": 5,
    }


def test_elements_that_a_step_reads_are_those_of_the_tensors() -> None:
    config = make_config(hidden=64, layers=3, heads=4, intermediate=256, vocab=4200)
    shapes = {
        name: shape
        for name, shape in config.tensor_shapes().items()
        if "embed" not in name and ".q_layernorm" not in name and ".k_layernorm" not in name
    }
    values = config.to_dict()
    assert matrix_elements(values) == sum(shape[0] * shape[1] for shape in shapes.values() if len(shape) > 1)
    assert vector_elements(values) == sum(shape[0] for shape in shapes.values() if len(shape) == 1)
    assert cache_elements(values) == 2 * 3 * 64


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="others' processor time is read from /proc")
def test_ones_own_work_is_not_that_of_others() -> None:
    start = CpuTime(wall=0.0, machine=10.0, ours=4.0)
    cores = os.cpu_count() or 1
    assert CpuTime(1.0, 10.0 + cores, 4.0 + cores).others_share_since(start) == 0
    assert CpuTime(1.0, 10.0 + cores, 4.0).others_share_since(start) == pytest.approx(1.0)
    assert CpuTime.now([]).machine > 0

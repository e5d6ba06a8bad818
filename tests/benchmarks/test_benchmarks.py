"""What benchmarks share: statistics, the schema of a result, tables; and the results that there are."""

from __future__ import annotations

import collections
import json
import os
import re
from pathlib import Path

import pytest

from benchmarks import machine
from benchmarks.baselines.protocol import cache_elements, matrix_elements, vector_elements
from benchmarks.result_file import (
    check_report,
    describe_run,
    summarise,
    table,
    without_folders,
    write_report,
)
from benchmarks.samples import CpuTime, Sample, figures, speedups
from benchmarks.workers import OURS, Variant
from tools.random_checkpoint import make_config

ROOT = Path(__file__).resolve().parents[2]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*/*.json"))
NEEDED = {"benchmark", "command", "date", "commit", "device", "threads", "versions", "samples", "measured"}
IN_A_CLONE = pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="a result names its commit, so it takes a clone"
)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_result_says_where_it_comes_from(path: Path) -> None:
    report = json.loads(path.read_text(encoding="utf-8"))
    check_report(report)
    assert report.keys() >= NEEDED
    assert all(report[name] for name in NEEDED - {"measured"})
    assert report["measured"] or report["simulated"]
    assert report["uncommitted_changes"] is False or report["changes"]
    assert re.fullmatch(r"[0-9a-f]{7,40}", report["commit"])


def test_a_figure_is_the_median_and_the_tenths() -> None:
    assert summarise(range(11)) == {"median": 5.0, "p10": 1.0, "p90": 9.0}


def test_a_table_has_its_columns_below_each_other() -> None:
    assert table(["a", "bb"], [["long", "1"], ["x", "22"]]) == "a     bb\nlong   1\nx     22"


@IN_A_CLONE
def test_a_report_is_held_to_its_schema() -> None:
    report = describe_run("test", 3, 2) | {"measured": {"x": summarise([1.0, 2.0, 3.0])}}
    check_report(report)
    with pytest.raises(ValueError, match="lacks machine"):
        check_report({name: value for name, value in report.items() if name != "machine"})
    for name in ("device", "commit", "command"):
        with pytest.raises(ValueError, match=f"lacks {name}"):
            check_report({key: value for key, value in report.items() if key != name})
        with pytest.raises(ValueError, match=f"{name} is empty"):
            check_report(report | {name: ""})
    turned = {"median": 1.0, "p10": 2.0, "p90": 3.0}
    with pytest.raises(ValueError, match="expected p10 ≤ median ≤ p90"):
        check_report(report | {"measured": {"ours": {"speed": turned}}})


def test_a_report_that_names_no_commit_is_not_written(tmp_path: Path) -> None:
    report = describe_run("test", 3, 2) | {"measured": {}, "commit": ""}
    write_report(report, None)
    with pytest.raises(ValueError, match="commit is empty; expected what names this very run"):
        write_report(report, tmp_path / "result.json")
    assert not (tmp_path / "result.json").exists()


def test_a_machine_is_described_with_what_the_system_shows(tmp_path: Path) -> None:
    described = machine.describe_machine()
    assert described["cores"] == os.cpu_count()
    assert described["kernels"] in ("", "avx512_vnni", "avx512", "avx2", "portable")
    for number, size in enumerate(["32K", "1024K", "33M"]):
        (tmp_path / f"index{number}").mkdir()
        (tmp_path / f"index{number}" / "size").write_text(f"{size}\n")
    assert machine.last_level_cache_bytes(tmp_path) == 33 << 20
    assert machine.last_level_cache_bytes(tmp_path / "absent") == 0
    (tmp_path / "scaling_governor").write_text("performance\n")
    assert machine.clocks(tmp_path)["governor"] == "performance"
    assert "highest_khz" not in machine.clocks(tmp_path)
    assert machine.results_folder("AMD EPYC", 2) == "amd-epyc-2-cores"
    assert machine.results_folder("NVIDIA H100 80GB HBM3", None) == "nvidia-h100-80gb-hbm3"


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


def test_a_variant_is_a_runtime_and_a_format() -> None:
    assert str(Variant.parse("llama.cpp:Q8_0")) == "llama.cpp:Q8_0"
    for wrong in ("llama.cpp", "llama.cpp:int8", "nobody:int8", ""):
        with pytest.raises(ValueError, match="is no runtime and format; expected one of"):
            Variant.parse(wrong)


def test_shares_and_ratios_are_of_samples_beside_each_other() -> None:
    samples = {
        "adept-fast:int8": [Sample(0.5, 100.0, 400.0), None, Sample(1.0, 100.0, 200.0)],
        "llama.cpp:Q8_0": [Sample(1.0, 100.0, 400.0), Sample(1.0, 100.0, 400.0), Sample(2.0, 100.0, 400.0)],
    }
    ours = figures(samples["adept-fast:int8"], collections.Counter(), tokens_per_step=2)
    assert ours["share_of_bandwidth"] == summarise([0.5, 0.5])
    assert ours["tokens_per_second"] == summarise([4.0, 2.0])
    (ratio,) = speedups(samples, OURS)["adept-fast:int8"].values()
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

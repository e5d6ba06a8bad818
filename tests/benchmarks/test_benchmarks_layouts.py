"""The benchmark ``layouts``: each kind of step is timed in every setting, on the emulator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from emulated_runtimes import as_emulated_gpu
from emulated_runtimes import load as load_emulated

from adept_fast import Runtime
from benchmarks.cases import layouts
from benchmarks.models import open_model
from benchmarks.result_file import check_report

TIMED = {
    (fmt, zeros, rows, context)
    for fmt in ("fp8", "int4-g128")
    for zeros, rows, context in ((0.0, 1, 5), (0.9, 1, 5), (0.9, 9, 5), (0.9, 1, 20))
    if (fmt, context) != ("int4-g128", 20)
}


def test_every_kind_is_timed_in_every_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: Path, fmt: str, layout: str, device: torch.device) -> Runtime:
        return load_emulated(open_model(path), fmt, layout, slots=1, context=layouts.FEWEST_STEPS)

    monkeypatch.setattr(layouts, "load", load)
    monkeypatch.setattr(layouts, "kinds_on", lambda device, head_dim: (["row_major", "tiles"], 8))
    monkeypatch.setenv("ADEPT_FAST_STEP", "")  # set by it, and put back after
    output = tmp_path / "layouts.json"
    asked = "--model tiny --device cpu --format fp8 --format int4-g128 --zeros 0,90 --rows 1 --rows 9"
    asked += f" --context 5 --context 20 --steps 4 --samples 1 --output {output}"
    with as_emulated_gpu() as operators:
        done = CliRunner().invoke(layouts.main, asked.split(), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    report = json.loads(output.read_text(encoding="utf-8"))
    check_report(report)
    rows = [*report["measured"].values()]
    assert [row["kind"] for row in rows[-5:]] == ["one kernel"] * 5  # they may never end
    found = {kind: [row for row in rows if row["kind"] == kind] for kind in layouts.KINDS}
    for kind, timed in found.items():
        expected = {each for each in TIMED if kind != "one kernel" or each[2] <= 8}
        assert {(row["format"], row["zeros"], row["rows"], row["context"]) for row in timed} == expected
        assert len(timed) == len(expected)
        for row in timed:
            assert row["same_tokens"]
            assert row["zero_share"] == pytest.approx(row["zeros"] ** row["rows"], abs=0.07)
            assert row["bytes_per_step"] < row["dense_bytes_per_step"] or not row["zeros"]
    assert {one for one, _ in operators.steps} == {False, True}
    usual, several = (
        report["measured"][f"fp8, tiles, 90% zeros, {n}, context 5"] for n in ("1 row", "9 rows")
    )
    times = [row["milliseconds_per_step"]["median"] for row in (several, usual)]
    assert several["over_one_row"] == pytest.approx(times[0] / times[1])
    by_rows = report["measured"]["fp8, row_major, 90% zeros, 9 rows, context 5"]
    assert several["times_as_fast"] == pytest.approx(by_rows["milliseconds_per_step"]["median"] / times[0])
    assert by_rows["times_as_fast"] == 1
    assert len([line for line in done.output.splitlines() if "one kernel" in line]) == 5


def test_on_a_cpu_matrices_lie_row_by_row(tmp_path: Path) -> None:
    output = tmp_path / "layouts.json"
    asked = "--model tiny --device cpu --format int8 --zeros 90 --rows 2 --context 3 --steps 4 --samples 1"
    done = CliRunner().invoke(layouts.main, [*asked.split(), "--output", str(output)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    report = json.loads(output.read_text(encoding="utf-8"))
    assert [*report["measured"]] == ["int8, row_major, 90% zeros, 2 rows, context 3"]

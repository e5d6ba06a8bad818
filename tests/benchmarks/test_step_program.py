"""benchmarks/step, compiled for the emulator: it runs the real step, counts bytes, and sees what is wrong."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cuda_on_cpu import build
from step_bytes import Shapes, moved_bytes, needed_units
from step_program import Step

from benchmarks.gpu_check import build as gpu_build
from benchmarks.gpu_check import programs
from benchmarks.gpu_check.programs import Case, StepProgram
from benchmarks.gpu_check.report import print_of
from benchmarks.result_file import check_report, describe_run

ROOT = Path(__file__).resolve().parents[2]

FORMATS = ("float16", "fp8", "int4")
OPERATORS = (
    *("step", "layer", "layernorm_qkv", "rotary_append", "decode_attention", "linear_residual"),
    *("mlp", "lm_head", "sample", "embed", "update_decode_state"),
)
TINY = Shapes(layers=2, hidden=128, heads=2, intermediate=384, vocab=520)  # --tiny
BOTH = ("row_major", "tiles")
KERNELS = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


def compiled(name: str, kernels: list[Path]) -> Path:
    try:
        return build.build_program("plain", name, [*gpu_build.step_sources(), *kernels])
    except build.UnavailableError as error:
        pytest.skip(str(error))


@functools.cache
def program() -> Path:
    return compiled("step", KERNELS)


def run(*arguments: str, program: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program or globals()["program"](), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def measured(folder: Path, *arguments: str, code: int = 0, **keywords: Any) -> dict[str, Any]:
    """The results of a tiny run."""
    path = folder / "step.json"
    done = run("--tiny", *arguments, "--json", str(path), **keywords)
    assert done.returncode == code, done.stderr + done.stdout
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return measured(tmp_path_factory.mktemp("step"), "--commit", "0123abc")


def test_the_report_says_what_ran_and_where(report: dict[str, Any]) -> None:
    assert report["commit"] == "0123abc"
    assert report["device"]["capability"] == "9.0"
    assert report["device"]["multiprocessors"] == 4
    assert report["launches_overlap"] is True
    assert report["shapes"] == {name: getattr(TINY, name) for name in report["shapes"]}
    for name in ("read_bytes_per_second", "copy_bytes_per_second"):
        assert 0 < report[name]["p10"] <= report[name]["median"] <= report[name]["p90"]


def test_every_operator_is_there_in_every_setting(report: dict[str, Any]) -> None:
    cases = [Case.of(entry) for entry in report["measured"]]
    assert len(set(cases)) == len(cases)
    assert {case.operator for case in cases} == set(OPERATORS)
    for name in ("layernorm_qkv", "linear_residual", "mlp", "layer", "step"):
        assert {(c.tokens, c.format) for c in cases if c.operator == name} == {
            (tokens, fmt) for tokens in (1, 3) for fmt in FORMATS
        }
    assert {(c.tokens, c.format) for c in cases if c.operator == "lm_head"} == {
        (tokens, fmt) for tokens in (1, 3) for fmt in ("float16", "fp8")
    }
    apart = [(1, 5), (3, 5), (1, 300)]  # never both away from the first
    for name in ("layer", "step"):
        settings = {(c.tokens, c.positions, c.zeros) for c in cases if c.operator == name}
        assert settings == {(*setting, zeros) for setting in apart for zeros in (0, 0.9)}
    assert {(c.tokens, c.positions) for c in cases if c.operator == "decode_attention"} == {
        (tokens, positions) for tokens in (1, 3) for positions in (5, 300)
    }
    assert {c.filter for c in cases if c.operator == "sample"} == {"greedy", "top-p", "top-k"}
    assert Counter(c.operator for c in cases)["update_decode_state"] == 2


def test_bytes_are_those_of_the_formula_in_python(report: dict[str, Any]) -> None:
    shapes = Shapes(layers=2, hidden=128, heads=2, intermediate=384, vocab=520)
    read = report["read_bytes_per_second"]["median"]
    for entry in report["measured"]:
        case = Case.of(entry)
        assert entry["bytes"] == moved_bytes(case, shapes), case
        assert entry["bound_seconds"] == pytest.approx(entry["bytes"] / read, rel=1e-6)
        assert entry["share"] == pytest.approx(entry["bound_seconds"] / entry["seconds"]["median"], rel=1e-6)
        assert 0 < entry["seconds"]["p10"] <= entry["seconds"]["median"] <= entry["seconds"]["p90"]
        assert entry["mean_magnitude"] > 0 or case.operator in (
            "sample",
            "update_decode_state",
        )  # id 0 is one too


def logits(folder: Path, step: Step, layout: str) -> torch.Tensor:
    dump = folder / layout
    arguments = [
        "--tiny",
        "--operator",
        "step",
        "--format",
        step.format,
        "--layout",
        layout,
        "--dump",
        str(dump),
    ]
    for option, value in (
        ("--sparsity", step.sparsity_percent),
        ("--tokens", step.tokens),
        ("--positions", step.positions),
    ):
        arguments += [option, str(value)]
    done = run(*arguments)
    assert done.returncode == 0, done.stderr + done.stdout
    return torch.from_numpy(np.fromfile(dump, dtype=np.float32)).view(step.tokens, TINY.vocab)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("setting", [(0, 1, 5), (90, 3, 5), (50, 3, 300), (100, 1, 300)])
def test_the_step_is_the_real_step_in_every_layout(
    fmt: str, setting: tuple[int, int, int], tmp_path: Path
) -> None:
    step = Step(fmt, *setting)
    ours = logits(tmp_path, step, "row_major")
    expected = step.logits(TINY)
    off = (ours - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert off < 3e-3
    for layout in ("tiles", "one"):
        assert torch.equal(logits(tmp_path, step, layout), ours), layout


def test_matrices_in_tiles_are_timed_too_and_one_kernel_last(tmp_path: Path) -> None:
    names = "step,layer,layernorm_qkv,linear_residual,mlp,lm_head"
    arguments = ["--operator", f"{names},embed", "--layout", "one,tiles,row_major", "--positions", "5"]
    report = measured(tmp_path, *arguments, "--tokens", "3,9", "--sparsity", "90")
    cases = {Case.of(entry): entry for entry in report["measured"]}
    assert len(cases) == len(report["measured"])
    for operator in names.split(","):
        row_major, tiles = (
            {c for c in cases if (c.operator, c.layout) == (operator, layout)} for layout in BOTH
        )
        assert row_major
        assert {replace(case, layout="row_major") for case in tiles} == row_major
        for case in tiles:
            plain = cases[replace(case, layout="row_major")]
            assert cases[case]["bytes"] == plain["bytes"]
            assert cases[case]["mean_magnitude"] == plain["mean_magnitude"]  # of the same bits
    last = [Case.of(entry).layout for entry in report["measured"]]
    assert last == sorted(last, key="one".__eq__)
    of_one = {case: entry for case, entry in cases.items() if case.layout == "one"}
    assert {case.operator for case in of_one} == {"step", "layer"}
    for case, entry in of_one.items():
        assert entry.get("skipped") == ("more than 8 tokens" if case.tokens == 9 else None)


NOTHING = {
    "embed": "cudaError_t embed(const Embed&, cudaStream_t) { return cudaSuccess; }",
    "update_decode_state": (
        "cudaError_t update_decode_state(const UpdateDecodeState&, cudaStream_t) { return cudaSuccess; }"
    ),
    "rotary_append": "cudaError_t rotary_append(const RotaryAppend&, cudaStream_t) { return cudaSuccess; }",
}


@pytest.mark.parametrize("name", NOTHING)
def test_a_kernel_that_does_nothing_is_seen(name: str, tmp_path: Path) -> None:
    source = tmp_path / f"no_{name}.cu"
    source.write_text(
        f'#include "cuda/kernels.h"\nnamespace adept::cuda {{\n{NOTHING[name]}\n}}\n', encoding="utf-8"
    )
    kernels = [kernel for kernel in KERNELS if kernel.stem != name]
    without = compiled(f"step_no_{name}", [*kernels, source])
    report = measured(tmp_path, "--operator", f"{name},mlp", "--tokens", "3", code=1, program=without)
    failed = {entry["operator"]: entry.get("failed") for entry in report["measured"]}
    expected = "an id was not written" if name == "update_decode_state" else "a result is not finite"
    assert failed == {name: expected, "mlp": None}  # the rest is measured all the same


def test_a_neuron_too_many_is_seen(tmp_path: Path) -> None:
    """Where the down-projection counts other rows than the biases leave."""
    source = tmp_path / "mlp.cu"
    text = (ROOT / "csrc" / "cuda" / "mlp.cu").read_text(encoding="utf-8")
    bias = "mlp.up_bias, nullptr, true"
    assert bias in text
    source.write_text(text.replace(bias, "nullptr, nullptr, true"), encoding="utf-8")
    kernels = [kernel for kernel in KERNELS if kernel.stem != "mlp"]
    arguments = ["--operator", "mlp", "--sparsity", "90", "--format", "float16"]
    wrong = compiled("step_wrong_mlp", [*kernels, source])
    report = measured(tmp_path, *arguments, code=1, program=wrong)
    units = TINY.layers * needed_units(Case("mlp", 1, zeros=0.9), TINY)
    for entry in report["measured"]:
        assert entry["failed"].endswith(f"neurons were active; expected {units}")


def test_what_does_not_fit_is_left_out_with_a_word(tmp_path: Path) -> None:
    megabyte = 1 << 20
    arguments = ["--operator", "decode_attention", "--tokens", "1,16", "--positions", "128,16384"]
    room = {"ADEPT_CUDA_ON_CPU_MEMORY": str(20 * megabyte)}
    report = measured(tmp_path, *arguments, **room)
    found = {(entry["tokens"], entry["positions"]): entry for entry in report["measured"]}
    assert found[1, 128]["distinct_caches"] == 2
    assert found[1, 16384]["distinct_caches"] == 1  # of 8 MiB, which both layers use
    assert found[16, 16384]["skipped"].startswith("the cache of a layer takes 134 MB, and ")
    assert found[16, 128]["seconds"]["median"] > 0
    layers = [
        "--operator",
        "layernorm_qkv,update_decode_state",
        "--format",
        "float16",
        "--layers",
        "100",
        "--tokens",
        "1",
    ]
    weights, none = measured(tmp_path, *layers, **room)["measured"]
    assert weights["skipped"] == "taking memory of the device: out of memory"
    assert none["seconds"]["median"] > 0


def test_the_formats_and_settings_are_those_that_were_asked_for(tmp_path: Path) -> None:
    asked = ["--operator", "step,mlp", "--format", "fp8", "--tokens", "2", "--positions", "7"]
    report = measured(tmp_path, *asked, "--sparsity", "50,50")
    assert [Case.of(entry) for entry in report["measured"]] == [
        Case("step", 2, "fp8", 0.5, 7),
        Case("mlp", 2, "fp8", 0.5),
    ]
    across = ["--operator", "step", "--format", "fp8", "--tokens", "1,2", "--positions", "7,9", "--cross"]
    report = measured(tmp_path, *across, "--sparsity", "0,50", "--layers", "1")
    assert len(report["measured"]) == 8
    assert report["shapes"]["layers"] == 1


def test_its_results_are_put_into_the_report_of_gpu_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "step"
    asked = "--format int4 --sparsity 90 --tokens 1,2 --positions 5"
    script.write_text(f'#!/bin/sh\nexec "{program()}" --tiny "$@" {asked}\n', encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setattr(programs, "PROGRAM", script)
    found = describe_run("gpu-check", 5, 1) | {"commit": "0123abc", "stages": {}, "measured": {}}
    outcome = StepProgram(found)(120)
    assert outcome.passed is True, outcome
    assert outcome.said == f"{len(found['measured'])} cases"
    assert found["step"]["commit"] == "0123abc"
    assert found["step"]["read_bytes_per_second"]["median"] > 0
    step = found["measured"][Case("step", 2, "int4", 0.9, 5).name]
    assert step["seconds"]["median"] > 0
    assert found["measured"]["sample, float32, greedy, 1 token"]["share"] > 0
    check_report(found)
    assert "step, int4, 90% zeros, 5 positions" in print_of(found)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--layout", "strips"], "--layout is strips; expected some of row_major, tiles, one"),
        (["--format", "fp9"], "--format is fp9; expected some of float16, fp8, int4"),
        (["--operator", "step,gemm"], "--operator is gemm; expected some of "),
        (["--tokens", "1,17"], "--tokens is 17; expected a whole number from 1 to 16"),
        (["--positions", ""], "--positions is empty; expected one number or several"),
        (["--sparsity", "-1"], "--sparsity is -1; expected a whole number from 0 to 100"),
        (["--hidden", "192"], "--hidden is 192; expected a multiple of 128"),
        (["--heads", "3"], "--heads is 3; expected heads of "),
        (["--json"], "--json has no value"),
        (["--fast"], "--fast is no option; --help lists them"),
    ],
)
def test_a_wrong_option_is_told_in_a_sentence(arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"step: {said}")
    assert done.stderr.count("\n") == 1


def test_the_help_names_every_operator_and_where_nothing_can_be_written_that_is_told() -> None:
    help_text = run("--help").stdout
    assert all(name in help_text for name in OPERATORS)
    done = run("--tiny", "--json", "/nowhere/step.json")
    assert (done.returncode, done.stderr) == (1, "step: nothing can be written to /nowhere/step.json\n")


def test_the_program_is_no_part_of_the_extension() -> None:
    csrc = ROOT / "csrc"
    assert not [
        file for file in gpu_build.recipe.source_files(csrc) if "benchmarks" in file.relative_to(ROOT).parts
    ]
    assert all(csrc not in source.parents for source in gpu_build.step_sources())


def test_an_architecture_has_two_spellings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [gpu_build.capability_of(name) for name in ("90", "9.0", "90a", "100")] == [
        "9.0",
        "9.0",
        "9.0a",
        "10.0",
    ]
    with pytest.raises(gpu_build.recipe.BuildError, match="the architecture is 'hopper'; expected"):
        gpu_build.capability_of("hopper")
    monkeypatch.setattr(gpu_build.shutil, "which", lambda name: None)
    with pytest.raises(gpu_build.recipe.BuildError, match="there is no GPU here"):
        gpu_build.architecture_here()

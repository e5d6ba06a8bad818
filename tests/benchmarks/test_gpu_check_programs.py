"""What ``gpu-check`` runs beside tests: the extension that it uses, the step program, and ``decode``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from adept_fast import extension
from benchmarks.cases import layouts, speed
from benchmarks.gpu_check import check as gpu_check
from benchmarks.gpu_check import extension as gpu_check_extension
from benchmarks.gpu_check import programs as gpu_check_programs
from benchmarks.gpu_check import run as gpu_check_run
from benchmarks.gpu_check.extension import find_extension
from benchmarks.gpu_check.programs import (
    BASELINES,
    COMPILED_LAYERS,
    COMPILED_PROMPTS,
    OF_PROMPTS,
    OURS,
    PROMPTS,
    Decode,
    Prefill,
    StepProgram,
)
from benchmarks.gpu_check.report import print_of
from benchmarks.gpu_check.stages import Ended, Outcome
from benchmarks.result_file import check_report, describe_run

ROOT = Path(__file__).resolve().parents[2]


def new_report() -> dict[str, Any]:
    return describe_run("gpu-check", 5, 1) | {"commit": "0123abc", "stages": {}, "measured": {}}


FACTS = {
    "extension": str(ROOT / "adept_fast" / "_C.abi3.so"),
    "read_bandwidth_bytes_per_second": 3e12,
    "copy_bandwidth_bytes_per_second": 2e12,
}
USED = Ended(0, False, ["a word of a library", json.dumps(FACTS)])
NO_IMAGE = Ended(1, False, ["RuntimeError: no kernel image is available"])


class Pretended:
    """``run_process``: what ends in turn, and the commands that were run."""

    def __init__(self, *ended: Ended) -> None:
        self._ended = list(ended)
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], seconds: float) -> Ended:
        self.commands.append(command)
        return self._ended.pop(0)

    @property
    def builds(self) -> list[list[str]]:
        return [command for command in self.commands if gpu_check_extension.BUILDER in command]


def test_what_was_carried_along_is_used_and_nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    pretended = Pretended(USED)
    monkeypatch.setattr(gpu_check_extension, "run_process", pretended)
    found = find_extension("9.0")
    assert found.is_usable
    assert not pretended.builds
    ((name, outcome, _),) = found.stages
    assert (name, outcome.passed) == ("extension", True)
    assert outcome.said == (
        "used adept_fast/_C.abi3.so, carried along or built before; memory is read at 3.00 TB/s"
    )
    assert found.facts["read_bandwidth_bytes_per_second"] == 3e12


@pytest.mark.parametrize(
    "refused", [NO_IMAGE, Ended(-9, True, ["…"]), Ended(0, False, []), Ended(-11, False, [])]
)
def test_it_builds_where_there_is_none_for_this_gpu(refused: Ended, monkeypatch: pytest.MonkeyPatch) -> None:
    pretended = Pretended(refused, Ended(0, False, ["built"]), USED)
    monkeypatch.setattr(gpu_check_extension, "run_process", pretended)
    found = find_extension("9.0")
    assert [(name, outcome.passed) for name, outcome, _ in found.stages] == [
        ("build", True),
        ("extension", True),
    ]
    assert found.stages[1][1].said.startswith("used adept_fast/_C.abi3.so, built now; ")
    (command,) = pretended.builds
    assert command[1:] == ["-m", "benchmarks.gpu_check.build", "--architecture", "9.0"]


@pytest.mark.parametrize(
    "ended",
    [(NO_IMAGE, Ended(1, False, ["nvcc is missing"])), (NO_IMAGE, Ended(0, False, ["built"]), NO_IMAGE)],
)
def test_without_any_extension_the_check_fails(
    ended: tuple[Ended, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check_extension, "run_process", Pretended(*ended))
    found = find_extension("9.0")
    assert not found.is_usable
    assert found.stages[-1][0] == "extension"
    assert found.stages[-1][1] == Outcome(False, "RuntimeError: no kernel image is available")


@pytest.mark.skipif(not extension.load().cuda, reason="the extension here has no CUDA")
def test_the_extension_here_is_used_where_its_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same program, whose kernel is that of a CPU here."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(gpu_check_extension, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_check_extension, "BUILDER", "nowhere.build")
    found = find_extension("9.0")
    assert found.is_usable, found.stages
    assert found.facts["read_bandwidth_bytes_per_second"] > 0
    assert found.facts["copy_bandwidth_bytes_per_second"] > 0
    if not torch.cuda.is_available():
        monkeypatch.setattr(gpu_check_extension, "DEVICE", "cuda")
        assert [(name, outcome.passed) for name, outcome, _ in find_extension("9.0").stages] == [
            ("build", False),
            ("extension", False),
        ]


ENTRY = {
    "operator": "mlp",
    "format": "fp8",
    "sparsity_percent": 90,
    "tokens": 1,
    "positions": 0,
    "sampling": "",
}
TIMED = {**ENTRY, "seconds": {"median": 1e-4, "p10": 1e-4, "p90": 1e-4}, "share": 0.9}
WRITES = """#!/bin/sh
for last; do :; done
cat >"$last" <<'END'
{}
END
{}
"""


@pytest.mark.parametrize(
    ("written", "then", "passed", "said"),
    [
        ({"measured": [TIMED]}, "exit 0", True, "1 cases"),
        ({"measured": [TIMED]}, "sleep 60", True, "1 cases, as many as fit"),
        (
            {"measured": [{**ENTRY, "failed": "a result is not finite"}]},
            "exit 1",
            False,
            "1 cases, 1 of them failed: mlp, fp8, 90% zeros, 1 token",
        ),
        ({"measured": [TIMED]}, "echo step: illegal address; exit 1", False, "1 cases"),
        ("half a fi", "sleep 60", False, "stopped by its limit; 0 cases"),
    ],
)
def test_what_the_step_program_says_is_told(
    written: Any, then: str, passed: bool, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "step"
    text = written if isinstance(written, str) else json.dumps(written)
    script.write_text(WRITES.format(text, then), encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setattr(gpu_check_programs, "PROGRAM", script)
    report = new_report()
    outcome = StepProgram(report)(2.0 if "sleep" in then else 60)
    assert (outcome.passed, outcome.said) == (passed, said)
    assert len(report["measured"]) == (0 if isinstance(written, str) else 1)


def test_without_the_step_program_a_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check_programs, "PROGRAM", tmp_path / "step")
    report = new_report()
    outcome = StepProgram(report)(60)
    assert outcome.passed is None
    assert outcome.said == "skipped: there is no build/step that can be run; make gpu-build makes it"
    (tmp_path / "step").touch()  # and it came without its mode
    assert StepProgram(report)(60).passed is None


def variants_of(command: list[str]) -> tuple[str, ...]:
    return tuple(value for name, value in zip(command, command[1:], strict=False) if name == "--runtime")


@pytest.mark.parametrize("who", ["adept-fast", *BASELINES])
def test_decodes_options_are_those_of_the_committed_results(who: str) -> None:
    command = Decode({}, who).command
    assert command[1:4] == ["-m", "benchmarks", "decode"]
    parsed = speed.decode.make_context("decode", command[4:]).params
    assert set(variants_of(command)) == set(OURS if who == "adept-fast" else [who])
    committed = ROOT / "benchmarks" / "results" / "nvidia-h100-80gb-hbm3"
    name = "decode-8b-float16.json" if who == "adept-fast" else "decode-8b-rivals.json"
    words = json.loads((committed / name).read_text(encoding="utf-8"))["command"].split()[2:]
    then = speed.decode.make_context("decode", words).params
    apart = ("variants", "output")
    assert {k: v for k, v in parsed.items() if k not in apart} == {
        k: v for k, v in then.items() if k not in apart
    }


@pytest.mark.parametrize(
    ("name", "layers", "runtimes"),
    [("adept-fast", None, OF_PROMPTS), (COMPILED_PROMPTS, COMPILED_LAYERS, (COMPILED_PROMPTS,))],
)
def test_prefills_options_are_those_of_the_command(
    name: str, layers: int | None, runtimes: tuple[str, ...]
) -> None:
    command = Prefill({}, name, layers).command
    assert command[1:4] == ["-m", "benchmarks", "prefill"]
    parsed = speed.prefill.make_context("prefill", command[4:]).params
    assert (parsed["lengths"], parsed["layers"], parsed["device"]) == (PROMPTS, layers, "cuda")
    assert (parsed["model"], parsed["variants"]) == ("8b", runtimes)


def test_a_baseline_that_is_not_installed_fails_no_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"measured": {"a": ROW}, "absent": {"transformers:float16": "no module"}}

    def pretend(command: list[str], seconds: float) -> Ended:
        Path(command[command.index("--output") + 1]).write_text(json.dumps(taken), encoding="utf-8")
        return Ended(0, False, [])

    monkeypatch.setattr(gpu_check_programs, "run_process", pretend)
    report = new_report()
    outcome = Prefill(report, "adept-fast")(60)
    assert outcome.passed
    assert outcome.said == "1 settings; absent: {'transformers:float16': 'no module'}"
    assert report["prefill"] == {"adept-fast": taken}
    taken["absent"] = {"adept-fast:int4": "no room"}
    assert Prefill(report, "adept-fast")(60).passed is False


ROW = {"tokens_per_second": {"median": 181.0, "p10": 180.0, "p90": 182.0}, "clean_samples": 5}


@pytest.mark.parametrize(
    ("who", "taken", "ended", "passed", "said"),
    [
        ("adept-fast", {"measured": {"a": ROW}, "absent": {}}, Ended(0, False, ["ok"]), True, "1 settings"),
        (
            "adept-fast",
            {"measured": {"a": ROW}, "absent": {}},
            Ended(-9, True, []),
            True,
            "1 settings, as many as fit",
        ),
        ("adept-fast", None, Ended(-9, True, []), False, "stopped by its limit; 0 settings"),
        ("adept-fast", None, Ended(1, False, ["WorkerError: x"]), False, "0 settings"),
        (
            "adept-fast",
            {"measured": {"a": ROW}, "absent": {"b": "no room"}},
            Ended(0, False, []),
            False,
            "1 settings; absent: {'b': 'no room'}",
        ),
        ("eager:float16", {"measured": {"a": ROW}, "absent": {}}, Ended(0, False, []), True, "1 settings"),
        ("eager:float16", None, Ended(1, False, ["not installed"]), None, "not installed"),
        ("eager:float16", None, Ended(-9, True, ["loading"]), None, "stopped by its limit; loading"),
    ],
)
def test_what_decode_says_is_put_into_the_report(
    who: str,
    taken: Any,
    ended: Ended,
    passed: bool | None,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def pretend(command: list[str], seconds: float) -> Ended:
        if taken is not None:
            Path(command[command.index("--output") + 1]).write_text(json.dumps(taken), encoding="utf-8")
        return ended

    monkeypatch.setattr(gpu_check_programs, "run_process", pretend)
    report = new_report()
    outcome = Decode(report, who)(60)
    assert (outcome.passed, outcome.said) == (passed, said)
    assert report.get("decode", {}) == ({} if taken is None else {who: taken})


class PretendedGpu:
    """What torch says of one."""

    name = "NVIDIA H100 80GB HBM3"
    major, minor, multi_processor_count, total_memory, L2_cache_size = 9, 0, 132, 80 << 30, 50 << 20


# A row of the benchmark of layouts.
IN_TILES = {
    **{"format": "fp8", "kind": "tiles", "zeros": 0.9, "rows": 1, "context": 128, "same_tokens": True},
    **dict.fromkeys(("tokens_per_second", "milliseconds_per_step"), ROW["tokens_per_second"]),
    **{"share_of_bandwidth": {"median": 0.5, "p10": 0.5, "p90": 0.5}, "bytes_per_step": 5e9},
}
OF_OPTION = {
    "--baselines": ["extension", *BASELINES, f"prefill {COMPILED_PROMPTS}"],
    "--layouts": ["extension", "step", "layouts"],
}


@pytest.mark.parametrize("option", [[], ["--baselines"], ["--layouts"]])
def test_a_whole_run_on_a_pretended_gpu(
    option: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "without_gpu", lambda: "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: PretendedGpu())
    monkeypatch.setattr(gpu_check.signal, "signal", lambda *arguments: None)
    for name in ("ADEPT_FAST_CUDA", "ADEPT_FAST_BUILD", "PYTHONPATH"):
        monkeypatch.setenv(name, "")  # set by it, and put back after
    monkeypatch.setattr(gpu_check_extension, "run_process", Pretended(USED))
    monkeypatch.setattr(gpu_check_run, "operator_tests", lambda seconds: Outcome(True, "409 passed"))
    monkeypatch.setattr(gpu_check_run, "model_tests", lambda seconds: Outcome(False, "1 failed", ["why"]))
    monkeypatch.setattr(gpu_check_programs, "PROGRAM", tmp_path / "step")

    def decoded(command: list[str], seconds: float) -> Ended:
        measured = dict.fromkeys(variants_of(command), ROW)
        if "layouts" in command:
            layouts.main.make_context("layouts", command[4:])
            measured = {"fp8, tiles": IN_TILES}
        rows = {"measured": measured, "absent": {}, "layers": 36}
        Path(command[command.index("--output") + 1]).write_text(json.dumps(rows), encoding="utf-8")
        return Ended(0, False, [])

    monkeypatch.setattr(gpu_check_programs, "run_process", decoded)
    output = tmp_path / "found.json"
    began = time.monotonic()
    done = CliRunner().invoke(gpu_check.main, ["--output", str(output), "--commit", "0123abc", *option])
    assert time.monotonic() - began < 60
    report = json.loads(output.read_text(encoding="utf-8"))
    check_report(report)
    verdicts = {name: stage["verdict"] for name, stage in report["stages"].items()}
    if option:
        assert verdicts == dict.fromkeys(OF_OPTION[option[0]], "passed") | (
            {"step": "not checked"} if option == ["--layouts"] else {}
        )
        assert report["benchmark"] == f"gpu-{option[0][2:]}"
    else:
        assert verdicts == {
            "extension": "passed",
            "operators": "passed",
            "graphs and model": "failed",
            "step": "not checked",
            "decode": "passed",
            "prefill": "passed",
        }
    assert done.exit_code == (0 if option else 1), done.output
    assert report["read_bandwidth_bytes_per_second"] == 3e12
    assert (report["device"], report["commit"]) == (PretendedGpu.name, "0123abc")
    shown = {"--baselines": "eager:float16", "--layouts": "tiles"}
    assert (shown[option[0]] if option else "adept-fast:int4") in print_of(report)

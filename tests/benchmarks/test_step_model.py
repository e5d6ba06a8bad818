"""benchmarks/step_model.py: the bytes of a step are those of the runtime, and what is predicted says so."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "rivals"), str(ROOT / "tools")]

import step_model  # noqa: E402
from gpu_check_cases import Shapes, moved_bytes  # noqa: E402
from random_checkpoint import PRESETS, make_config, write_random  # noqa: E402
from step_model import DEVICES, Kernel, Step, StepModel  # noqa: E402

from adept_fast import Runtime  # noqa: E402
from adept_fast.checkpoint import StoredTensor  # noqa: E402
from adept_fast.checkpoint.packed import packed_matrices  # noqa: E402
from adept_fast.config import PersimmonConfig  # noqa: E402
from adept_fast.quantization.layout_gpu import GpuMatrix  # noqa: E402
from adept_fast.quantization.layouts import formats_of  # noqa: E402

SIZES = {"hidden": 128, "layers": 3, "heads": 2, "intermediate": 384, "vocab": 4224, "context": 1024}


def held_bytes(config: PersimmonConfig, fmt: str) -> int:
    """What the matrices that a step reads take when they are really packed, and the vectors, in float32."""
    plans = packed_matrices(config, formats_of(torch.device("cuda"))[fmt], GpuMatrix)
    total = 0
    for name, shape in config.tensor_shapes().items():
        if name in plans:
            stored = StoredTensor(
                name, shape, torch.float16, "", lambda shape=shape: torch.ones(shape).half()
            )
            total += plans[name].pack(stored).nbytes
        elif "embed_tokens" not in name:
            total += 4 * math.prod(shape)
    return total


@pytest.mark.parametrize("context", [1, 300])
def test_the_models_bytes_are_those_of_the_runtime(tmp_path: Path, context: int) -> None:
    config = make_config(**SIZES)
    model = StepModel(config, DEVICES["h100"])
    path = write_random(tmp_path / "model", config)
    runtime = Runtime.load(path, device="cpu", dtype="float16", progress=False)
    assert model.bytes_read(Step("float16", 1, context)) == runtime.bytes_read_per_step(context)
    cache = runtime.bytes_read_per_step(context) - runtime.bytes_read_per_step(0)
    for fmt in ("fp8", "int4"):
        assert model.bytes_read(Step(fmt, 1, context)) == held_bytes(config, fmt) + cache
    four = model.bytes_read(Step("float16", 4, context))
    assert four == runtime.bytes_read_per_step(0) + 4 * cache


@pytest.mark.parametrize("fmt", ["float16", "fp8", "int4"])
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("batch", [1, 4])
def test_the_kernels_of_an_operator_move_what_its_case_counts(fmt: str, zeros: float, batch: int) -> None:
    model = StepModel(make_config(**SIZES), DEVICES["h100"])
    step = Step(fmt, batch, 700, zeros)
    moved: dict[str, int] = {}
    for kernel in model.kernels(step):
        assert min(kernel.weights, kernel.cache, kernel.activations) >= 0, kernel
        moved[kernel.operator] = moved.get(kernel.operator, 0) + kernel.bytes
    for operator, counted in moved.items():
        if operator != "sample":  # whose three kernels each read the logits
            assert counted == moved_bytes(model.case(operator, step), model.shapes), operator


def test_rows_of_zeros_are_not_counted() -> None:
    config = make_config(**SIZES)
    model = StepModel(config, DEVICES["h100"])
    dense, sparse, of_two = (
        model.bytes_read(Step("float16", batch, 1, zeros)) for batch, zeros in ((1, 0.0), (1, 0.5), (2, 0.5))
    )
    row = 2 * config.hidden_size
    assert dense - sparse == config.num_hidden_layers * 192 * row
    cache = 4 * config.hidden_size * config.num_hidden_layers
    assert dense - (of_two - cache) == config.num_hidden_layers * 96 * row  # both are 0 for a quarter


def test_a_wave_that_leaves_places_empty_takes_longer_than_its_bytes() -> None:
    device = DEVICES["h100"]
    speed = step_model.ACHIEVABLE * device.bytes_per_second
    enough = math.ceil(device.bytes_per_second * step_model.LATENCY_SECONDS / 100)  # in flight, of 100 bytes
    full = Kernel("full", "", 1, weights=10**9, pieces=enough, places=enough, bytes_of_piece=100)
    assert full.seconds(device) == pytest.approx(step_model.GAP_SECONDS + 1e9 / speed)
    assert full.last_wave == 1.0
    half = Kernel("half", "", 1, weights=10**9, pieces=enough // 2, places=enough, bytes_of_piece=100)
    assert half.seconds(device) == pytest.approx(step_model.GAP_SECONDS + 2e9 / speed, rel=1e-3)
    assert half.last_wave == pytest.approx(0.5, rel=1e-3)
    more = Kernel("more", "", 1, weights=10**9, pieces=enough + 1, places=enough, bytes_of_piece=100)
    assert more.seconds(device) > 1.9 * full.seconds(device)
    small = Kernel("small", "", 1)
    assert small.seconds(device) == step_model.GAP_SECONDS + step_model.CHAIN_SECONDS


def test_a_prediction_says_that_it_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    step_model.predict("h100")
    said = capsys.readouterr().out
    assert said.startswith("PREDICTED, NOT MEASURED")
    assert said.count(" zeros  ") >= 108  # three formats, batches and contexts, four shares
    assert "float16, batch 16, context 16384, 0% zeros   does not fit" in said


def test_what_was_measured_stands_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(step_model, "ROOT", tmp_path)
    folder = tmp_path / "benchmarks" / "results" / "nvidia-h100-80gb-hbm3"
    folder.mkdir(parents=True)
    name = "lm_head, float16, 1 token"
    report = {"device": "NVIDIA H100 80GB HBM3", "measured": {name: {"seconds": {"median": 812e-6}}}}
    (folder / "gpu-check.json").write_text(json.dumps(report), encoding="utf-8")
    step_model.predict("h100", [1], [128], [0.0])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "812.0" in line)
    operator, predicted, measured = line.split()
    assert (operator, measured) == ("lm_head", "812.0")
    assert float(predicted) > 600
    assert step_model.measured_on("h200") == {}


def test_the_8bs_shapes_are_those_that_are_timed() -> None:
    config = make_config(**PRESETS["8b"], context=16384)
    assert StepModel(config, DEVICES["h100"]).shapes == Shapes()

"""The benchmark ``decode``: every setting is a row, and rows are right."""

from __future__ import annotations

import collections
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from own_process import python_file, run_module

from benchmarks import sweep
from benchmarks.baselines.adept_fast import AdeptFastWorker
from benchmarks.baselines.protocol import Absent
from benchmarks.cases import speed
from benchmarks.models import random_model
from benchmarks.options import Arguments
from benchmarks.result_file import check_report, summarise
from benchmarks.samples import Job, Limits, Sample, Samples, figures
from benchmarks.sweep import Found, Plan, loaded_together
from benchmarks.workers import OURS, AbsentError, Variant, Worker, WorkerError, Workers, warm_up
from benchmarks.workloads import Decode, DecodeMeasure, Setting, prompt_ids

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
IDS = [[5, 900, 31, 77, 4000, 8, 8, 250], [17, 3, 2048, 999, 1, 60, 61, 62]]
STEPS = 6


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model("tiny", 0.5, tmp_path_factory.mktemp("tiny"))


# A test machine may be busy: no sample is dropped.
ANY_SAMPLE = ["--samples", "3", "--max-others-share", "9", "--max-bandwidth-change", "1"]


def test_decode_runs_every_setting_on_a_cpu(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("a result names its commit, so it takes a clone")
    output, folder = tmp_path / "decode.json", tmp_path / "models"
    forks = python_file(tmp_path / "python")
    done = run_module(
        *(
            "benchmarks",
            "decode",
            "--device",
            "cpu",
            "--model",
            "tiny",
            "--model-folder",
            str(folder),
            "--steps",
            "5",
        ),
        *("--batch", "1", "--batch", "3", "--context", "9", "--zeros", "90", "--threads", "1"),
        *("--runtime", "adept-fast:float32", "--runtime", "eager:float32"),
        *("--runtime", "openvino:int8", "--python", "openvino=/no/such/python"),
        *("--python", f"adept-fast={forks}", "--python", f"eager={forks}"),
        *("--output", str(output), *ANY_SAMPLE),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text(encoding="utf-8"))
    check_report(report)
    assert [*report["measured"]] == [
        f"{name}, batch {batch}" for batch in (1, 3) for name in ("adept-fast:float32", "eager:float32")
    ]
    assert report["absent"].keys() == {"openvino:int8"}
    assert "openvino:int8 is absent" in done.stdout
    for batch in (1, 3):
        ours = report["measured"][f"adept-fast:float32, batch {batch}"]
        baseline = report["measured"][f"eager:float32, batch {batch}"]
        assert (ours["batch"], ours["context"], ours["zeros"]) == (batch, 9, 0.9)
        assert ours["zero_share"] == pytest.approx(0.9**batch, abs=0.07)
        assert ours["bytes_per_step"] < ours["dense_bytes_per_step"]
        # Its cache of float32 takes twice the bytes, and it skips no row.
        assert baseline["bytes_per_step"] == pytest.approx(ours["dense_bytes_per_step"], rel=0.01)
        for name, values in report["measured"].items():
            assert name in done.stdout
            assert values["clean_samples"] == 3
            assert values["share_of_bandwidth"]["median"] > 0
        assert ours["share_of_dense_floor"]["median"] > ours["share_of_bandwidth"]["median"]
        assert report["ratios"][f"adept-fast:float32, batch {batch}"].keys() == {
            f"eager:float32, batch {batch}"
        }
    assert report["order"] == "in turn"
    assert report["model"]["random"]["zeros"] == 0.9
    assert [path.name for path in folder.iterdir()] == ["tiny-90"]
    assert str(tmp_path) not in output.read_text(encoding="utf-8")


@pytest.mark.parametrize("format", ["fp8", "int8"])
def test_what_a_device_does_not_take_is_absent(tiny: Path, format: str) -> None:
    worker = AdeptFastWorker()
    load = {"checkpoint": str(tiny), "threads": 1, "batch": 1}
    if format == "fp8":
        with pytest.raises(Absent, match=r"weights is 'fp8'; expected int8 or .* on cpu"):
            worker.load(**load, format=format, context=32)
        return
    with pytest.raises(Absent, match="max_seq_len is 1000000; expected an integer from 1 to 32768"):
        worker.load(**load, format=format, context=1_000_000)
    worker.load(**load, format=format, context=32)
    found = worker.decode([[5, 6, 7]], 4)
    assert found["bytes_per_step"] < found["dense_bytes_per_step"]
    assert found["zero_share"] == pytest.approx(0.5, abs=0.1)


def test_what_has_room_is_not_loaded_again(tiny: Path) -> None:
    worker = AdeptFastWorker()
    load = {"checkpoint": str(tiny), "format": "float32", "threads": 1}
    worker.load(**load, context=64, batch=2)
    first = worker.runtime
    worker.load(**load, context=32, batch=1)
    assert worker.runtime is first
    for room in ({"context": 65, "batch": 1}, {"context": 8, "batch": 3}):
        before = worker.runtime
        worker.load(**load, **room)
        assert worker.runtime is not before
    worker.load(**load | {"format": "float16"}, context=8, batch=3)
    assert worker.runtime is not None
    assert worker.runtime.placement.dtype == torch.float16


def test_a_sweep_keeps_what_there_is_and_puts_it_in_order(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest setting runs first, and does not fit; the others are kept one by one."""

    class Fake(Workers):
        def load(self, checkpoint: Path, **room: Any) -> tuple[list[Worker], dict[str, str]]:
            assert room["context"] in (16 + 8 + 1, 128 + 8 + 1)
            if room["batch"] * room["context"] > 4 * 64:
                return [], {"eager:float16": "too large"}
            return self.present, {}

    @contextlib.contextmanager
    def started_workers(variants: list[Variant], **options: Any) -> Iterator[Workers]:
        broken = {"transformers": WorkerError("it broke")}
        yield Fake([FakeWorker(str(each), broken.get(each.runtime)) for each in variants])

    def sample_in_turn(jobs: dict[str, Job], rounds: int, *_: Any, **__: Any) -> Any:
        samples = {row: [Sample(1.0, 100.0, 100.0)] * rounds for row in jobs}
        return samples, {row: collections.Counter() for row in jobs}

    monkeypatch.setattr(sweep, "started_workers", started_workers)
    monkeypatch.setattr(sweep, "sample_in_turn", sample_in_turn)
    monkeypatch.setattr(sweep, "BandwidthProbe", lambda device: None)
    variants = tuple(Variant.parse(name) for name in ("eager:float16", "transformers:float16"))
    arguments = Arguments(3, 1, Limits(), None, tiny, variants)
    plan = Plan(Decode(8, 1.0), CPU, {None: tiny}, (1, 4), (16, 128))
    kept: list[list[str]] = []
    found = sweep.sweep(arguments, plan, lambda found: kept.append([*found.rows()]))
    rows = [
        f"eager:float16, {rest}"
        for rest in ("batch 1, context 16", "batch 1, context 128", "batch 4, context 16")
    ]
    assert kept == [[], rows[1:2], rows[1:], rows]
    assert found.reasons() == {
        "eager:float16, batch 4, context 128": "too large",
        "transformers:float16": "it broke",
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected one of --checkpoint and --model"),
        (["--model", "tiny", "--checkpoint", "."], "expected one of --checkpoint and --model"),
        (["--model", "9b"], "--model is '9b'; expected tiny, 0.7g, small, 8b or a directory"),
        (["--model", "tiny", "--zeros", "0.5"], "expected percents from 1 to below 100, or 0"),
        (["--model", "tiny", "--zeros", "50,100"], "expected percents from 1 to below 100, or 0"),
        (["--model", ".", "--zeros", "50"], "--zeros belongs to the presets of --model"),
        (["--model", "tiny", "--device", "cuda"], "sees no GPU here"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(speed.decode, arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())


def test_everyone_who_runs_by_default_is_known() -> None:
    for names in speed.DEFAULT_VARIANTS.values():
        assert [str(Variant.parse(name)) for name in names] == list(names)


def test_prompts_stay_within_the_vocabulary() -> None:
    assert prompt_ids(3) == [5, 6, 7]
    ids = prompt_ids(20000, first=1605, vocab=4224)
    assert (len(ids), ids[0], min(ids), max(ids)) == (20000, 1605, 5, 4223)


class FakeWorker(Worker):
    """Takes a millisecond a step, or fails."""

    def __init__(self, variant: str, fails: Exception | None = None) -> None:
        self.variant = Variant.parse(variant)
        self.facts = {"weight_bytes": 7}
        self.fails = fails
        self.steps: list[int] = []

    @property
    def pid(self) -> int:
        return id(self)

    def call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        if self.fails:
            raise self.fails
        self.steps.append(arguments["steps"])
        return {"seconds": 1e-3 * arguments["steps"], "bytes_per_step": 100}


def test_a_sample_is_as_long_as_asked_and_warm() -> None:
    worker = FakeWorker("eager:float32")
    measure = DecodeMeasure(worker, [[5]], 24, 0.010)
    assert measure() == {"seconds_per_step": 1e-3, "bytes_per_step": 100, "steps_per_sample": 10}
    measure()
    assert worker.steps == [4, 10, 10]  # the first call has run at full length too


def test_a_baseline_that_fails_is_left_out_and_ours_is_an_error() -> None:
    def job(variant: str, fails: Exception | None = None) -> dict[str, Job]:
        return {variant: Decode(4).job(FakeWorker(variant, fails), Setting(None, 1, 3))}

    broken, large = WorkerError("it broke"), AbsentError("too large")
    jobs = job("eager:float32", broken) | job("eager:float16") | job("adept-fast:int8", large)
    assert warm_up(jobs) == {"eager:float32": "it broke", "adept-fast:int8": "too large"}
    assert [*jobs] == ["eager:float16"]
    with pytest.raises(WorkerError, match="ours broke"):
        warm_up(job("adept-fast:int8", WorkerError("ours broke")))


def test_shares_of_the_dense_floor_count_what_was_skipped() -> None:
    found = figures(
        [Sample(2.0, 100.0, 100.0, {"dense_bytes_per_step": 300})], collections.Counter(), tokens_per_step=1
    )
    assert found["floor_milliseconds"] == summarise([1000.0])
    assert found["share_of_bandwidth"] == summarise([0.5])
    assert found["dense_floor_milliseconds"] == summarise([3000.0])
    assert found["share_of_dense_floor"] == summarise([1.5])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_rows_are_compared_within_their_batch_and_context(device: str) -> None:
    """On a GPU, where baselines run at the first share of zeros, with the baseline's row of that share."""
    checkpoints: dict[float | None, Path] = {0.0: Path("a"), 0.9: Path("b")}
    plan = Plan(Decode(8), torch.device(device), checkpoints, (1, 4), (128,))
    variants = tuple(Variant.parse(name) for name in ("adept-fast:int4", "eager:float16"))
    found = Found()
    tokens_a_second = 1.0
    for at, zeros in enumerate(plan.checkpoints):
        for group in loaded_together(variants, plan.in_turn, at == 0):
            for setting in [each for settings in plan.groups(zeros) for each in settings]:
                for variant in group:
                    tokens_a_second += 1
                    samples: Samples = [Sample(1 / tokens_a_second, 100.0, 100.0)]
                    worker, row = FakeWorker(str(variant)), plan.row(variant, setting)
                    found.add(row, worker, setting, samples, collections.Counter(), setting.batch)
    ratios = found.speedups()
    assert len(ratios) == 4
    for row, others in ratios.items():
        assert row.startswith(OURS)
        ((other, ratio),) = others.items()
        assert other.partition("batch")[2] == row.partition("batch")[2]
        assert ("90% zeros" in other) == ("90% zeros" in row and device == "cpu")
        ours, theirs = (found.measured[name]["tokens_per_second"]["median"] for name in (row, other))
        batch = found.measured[row]["batch"]
        assert ratio["speedup"]["median"] == pytest.approx((ours / batch) / (theirs / batch))


def test_rows_name_what_differs_and_absence_is_said_once() -> None:
    one = Plan(Decode(8), CPU, {None: Path("a")})
    variant, setting = Variant.parse("eager:float16"), Setting(None, 1, 16)
    assert one.row(variant, setting) == "eager:float16"
    several = Plan(Decode(8), CPU, {0.0: Path("a"), 0.9: Path("b")}, (1, 4), (16, 128))
    name = "eager:float16, 90% zeros, batch 4, context 128"
    assert several.row(variant, Setting(0.9, 4, 128)) == name
    found = Found(
        measured={"x:a, batch 1": {}},
        absent={"x:a, batch 4": "too large", "y:b, batch 1": "none", "y:b, batch 4": "none", "z:c": "gone"},
    )
    assert found.reasons() == {"x:a, batch 4": "too large", "y:b": "none", "z:c": "gone"}

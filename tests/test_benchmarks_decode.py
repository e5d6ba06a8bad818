"""benchmarks/decode.py: rivals compute the same model, rows are right, and so is the model of a step."""

from __future__ import annotations

import collections
import contextlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "rivals"), str(ROOT / "tools")]

import step_model  # noqa: E402
import sweep  # noqa: E402
import torch_rival  # noqa: E402
from adept_fast_worker import AdeptFastWorker  # noqa: E402
from arguments import Arguments  # noqa: E402
from checkpoints import demo_tokenizer, random_tensors, small_config, write_huggingface  # noqa: E402
from contest import (  # noqa: E402
    OURS,
    AbsentError,
    Contest,
    Contestant,
    Limits,
    Sample,
    Worker,
    WorkerError,
    figures,
    warm_up,
)
from decode import CONTESTANTS, DecodeMeasure, prompt_ids  # noqa: E402
from eager import Cache, Persimmon  # noqa: E402
from eager_compiled_worker import EagerCompiledWorker  # noqa: E402
from eager_worker import EagerWorker  # noqa: E402
from gpu_check_cases import Shapes, moved_bytes  # noqa: E402
from harness import check_report, summarise  # noqa: E402
from models import is_recipe, open_model, random_model  # noqa: E402
from protocol import Absent  # noqa: E402
from random_checkpoint import PRESETS, make_config, open_random, write_random, write_recipe  # noqa: E402
from step_model import DEVICES, Kernel, Step, StepModel  # noqa: E402
from sweep import Found, Setting, Sweep, groups  # noqa: E402
from transformers_compiled_worker import TransformersCompiledWorker  # noqa: E402
from transformers_worker import TransformersWorker  # noqa: E402

from adept_fast import Runtime  # noqa: E402
from adept_fast.checkpoint import StoredTensor, open_checkpoint  # noqa: E402
from adept_fast.config import PersimmonConfig  # noqa: E402
from adept_fast.quantize_wide import wide_matrices  # noqa: E402

CPU = torch.device("cpu")
IDS = [[5, 900, 31, 77, 4000, 8, 8, 250], [17, 3, 2048, 999, 1, 60, 61, 62]]
STEPS = 6


@pytest.fixture(scope="module", params=["q/k LayerNorm", "none", "tied"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = {"none": {"qk_layernorm": False}, "tied": {"tie_word_embeddings": True}}
    config = small_config(**changes.get(request.param, {}))
    path = tmp_path_factory.mktemp("model") / "model"
    return write_huggingface(path, config, random_tensors(config), demo_tokenizer())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model("tiny", 0.5, tmp_path_factory.mktemp("tiny"))


def logits_of_transformers(path: Path, ids: list[list[int]]) -> Tensor:
    from transformers import PersimmonForCausalLM

    reference = PersimmonForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.inference_mode():
        return reference(torch.tensor(ids)).logits


@torch.inference_mode()
def test_the_eager_model_gives_transformers_logits(model: Path) -> None:
    """Read whole, and read in part and then token by token, in both of the ways that attention can look."""
    expected = logits_of_transformers(model, IDS)  # [2, 8, vocab]
    eager = Persimmon.load(open_checkpoint(model), torch.float32, CPU)
    ids = torch.tensor(IDS)
    whole = eager(ids, torch.arange(8), Cache(eager.config, 2, 20, torch.float32, CPU), 8)
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=1e-5)
    for fixed_shapes in (False, True):
        cache = Cache(eager.config, 2, 20, torch.float32, CPU)
        eager(ids[:, :3], torch.arange(3), cache, 3)
        for at in range(3, 8):
            length = None if fixed_shapes else at + 1
            step = eager.last_logits(ids[:, at : at + 1], torch.tensor([at]), cache, length)
            torch.testing.assert_close(step, expected[:, at], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_the_eager_model_gives_the_runtimes_log_probabilities(model: Path) -> None:
    runtime = Runtime.load(model, device="cpu", dtype="float32", cache_dtype="float32", progress=False)
    eager = Persimmon.load(open_checkpoint(model), torch.float32, CPU)
    ids = torch.tensor(IDS[:1])
    logits = eager(ids, torch.arange(8), Cache(eager.config, 1, 8, torch.float32, CPU), 8)
    of_each = logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).sum()
    (score,) = runtime.score(IDS[:1])
    assert score.total == pytest.approx(of_each.item(), abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_the_eager_model_runs_in_narrow_dtypes(model: Path, dtype: torch.dtype) -> None:
    eager = Persimmon.load(open_checkpoint(model), dtype, CPU)
    cache = Cache(eager.config, 2, 8, dtype, CPU)
    logits = eager.last_logits(torch.tensor(IDS), torch.arange(8), cache, 8)
    assert logits.dtype == dtype
    expected = logits_of_transformers(model, IDS)[:, -1]
    assert (logits.float() - expected).square().mean().sqrt() < 0.05 * expected.std()


def compile_without_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile traces, as one graph, and runs what it traced as it is: making code of it takes long."""
    plain = torch.compile

    def traced(function: Any, **options: Any) -> Any:
        assert options == {"mode": None, "fullgraph": True, "dynamic": False}
        return plain(function, backend="eager", fullgraph=True, dynamic=False)

    monkeypatch.setattr(torch, "compile", traced)


def ids_of(worker: torch_rival.TorchRival, prompts: list[list[int]]) -> list[list[int]]:
    """What a worker's steps choose after the prompts, the first token too."""
    chosen: list[Tensor] = []
    step = worker.step

    def noted(ids: Tensor) -> Tensor:
        chosen.append(ids)
        return step(ids)

    worker.step = noted  # type: ignore[method-assign]
    worker.decode(prompts, STEPS)
    worker.step = step  # type: ignore[method-assign]
    return torch.cat(chosen, dim=1).tolist()


@pytest.mark.parametrize(
    "kind", [EagerWorker, EagerCompiledWorker, TransformersWorker, TransformersCompiledWorker]
)
def test_torch_rivals_generate_what_ours_does(
    kind: type[torch_rival.TorchRival], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """At every call: where the prompt need not be read again, where another comes, and in another room."""
    compile_without_code(monkeypatch)
    config = small_config(vocab_size=4096)  # ours leaves out rows that no piece uses
    path = write_huggingface(tmp_path / "model", config, random_tensors(config), demo_tokenizer())
    runtime = Runtime.load(path, device="cpu", dtype="float32", cache_dtype="float32", progress=False)
    others = [prompt[::-1] for prompt in IDS]
    expected = {
        turn: [
            generation.token_ids
            for generation in runtime.generate(prompts, max_new_tokens=STEPS, ignore_eos=True)
        ]
        for turn, prompts in (("first", IDS), ("other", others))
    }
    monkeypatch.setattr(torch_rival, "CHUNK", 6)  # so that the prompts are read in several parts
    worker = kind()
    load = {"checkpoint": str(path), "format": "float32", "threads": 1}
    facts = worker.load(**load, context=8 + STEPS + 1, batch=2)
    assert facts["weight_bytes"] > 0
    assert ids_of(worker, IDS) == expected["first"]
    assert ids_of(worker, IDS) == expected["first"]
    assert ids_of(worker, others) == expected["other"]
    worker.load(**load, context=40, batch=1)
    assert ids_of(worker, others[:1]) == expected["other"][:1]
    assert worker.prefill(IDS[0])["seconds"] > 0


def test_a_rival_that_does_not_fit_is_absent_before_it_takes_the_memory(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = EagerWorker()
    load = {"checkpoint": str(tiny), "format": "float32", "threads": 1, "batch": 16}
    monkeypatch.setattr(torch_rival, "free_bytes", lambda device: 50_000_000)
    with pytest.raises(Absent, match=r"it takes 5\.\d GB more, and 0\.1 GB are free"):
        worker.load(**load, context=160_000)
    worker.load(**load, context=32)
    assert worker.decode([[5, 6]] * 16, 4)["bytes_per_step"] > worker.weight_bytes


def test_a_gpus_steps_are_timed_by_its_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host waits before and after them, and not between."""
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def synchronize(self) -> None:
            log.append("wait")

        def elapsed_time(self, after: Event) -> float:
            return 12.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("wait"))
    seconds = torch_rival.timed(torch.device("cuda"), 3, lambda: log.append("step"))
    assert seconds == 0.012
    assert log == ["wait", "record", "step", "step", "step", "record", "wait"]


def test_a_recipe_holds_no_weights_and_draws_those_of_the_checkpoint(tmp_path: Path) -> None:
    config = make_config(**PRESETS["tiny"])
    recipe = write_recipe(tmp_path / "recipe", config, torch.bfloat16, zeros=0.9, seed=3)
    written = open_checkpoint(write_random(tmp_path / "written", config, torch.bfloat16, zeros=0.9, seed=3))
    assert is_recipe(recipe)
    assert not is_recipe(written.path)
    assert sum(file.stat().st_size for file in recipe.iterdir()) < 10_000
    drawn = open_model(recipe)
    assert drawn.config.tensor_shapes() == written.config.tensor_shapes()
    assert drawn.dtype == torch.bfloat16
    assert drawn.tokenizer.vocab_size == written.tokenizer.vocab_size
    for name, stored in written.tensors.items():
        assert torch.equal(stored.read(), drawn.tensors[name].read()), name
    with pytest.raises(ValueError, match="zeros is 1"):
        write_recipe(tmp_path / "wrong", config, zeros=1.0)
    assert not (tmp_path / "wrong").exists()


def test_torch_rivals_take_recipes(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe", make_config(**PRESETS["tiny"]), zeros=0.5)
    runtime = Runtime.load(open_random(recipe), device="cpu", dtype="float32", max_seq_len=64, progress=False)
    assert runtime.generate([[5, 6, 7]], max_new_tokens=4, ignore_eos=True)[0].token_ids
    load = {"checkpoint": str(recipe), "format": "float32", "threads": 1, "context": 32, "batch": 2}
    found = []
    for worker in (EagerWorker(), TransformersWorker()):
        worker.load(**load)
        found.append(ids_of(worker, IDS))
    assert found[0] == found[1]


def run_decode(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "benchmarks/decode.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


# A test machine may be busy: no sample is dropped.
ANY_SAMPLE = ["--samples", "3", "--max-others-share", "9", "--max-bandwidth-change", "1"]


def test_decode_runs_every_setting_on_a_cpu(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("a result names its commit, so it takes a clone")
    output, folder = tmp_path / "decode.json", tmp_path / "models"
    done = run_decode(
        *("--device", "cpu", "--model", "tiny", "--model-folder", str(folder), "--steps", "5"),
        *("--batch", "1", "--batch", "3", "--context", "9", "--zeros", "90", "--threads", "1"),
        *("--contestant", "adept-fast:float32", "--contestant", "eager:float32"),
        *("--contestant", "openvino:int8", "--python", "openvino=/no/such/python"),
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
        rival = report["measured"][f"eager:float32, batch {batch}"]
        assert (ours["batch"], ours["context"], ours["zeros"]) == (batch, 9, 0.9)
        assert ours["zero_share"] == pytest.approx(0.9**batch, abs=0.07)
        assert ours["bytes_per_step"] < ours["dense_bytes_per_step"]
        # Its cache of float32 takes twice the bytes, and it skips no row.
        assert rival["bytes_per_step"] == pytest.approx(ours["dense_bytes_per_step"], rel=0.01)
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
        with pytest.raises(Absent, match="weights is 'fp8'; expected int8 or int4 on cpu"):
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

    class Fake(Contest):
        def load(self, checkpoint: Path, **room: Any) -> tuple[list[Worker], dict[str, str]]:
            assert room["context"] in (16 + 8 + 1, 128 + 8 + 1)
            if room["batch"] * room["context"] > 4 * 64:
                return [], {"eager:float16": "too large"}
            return self.workers, {}

    @contextlib.contextmanager
    def enter(contestants: list[Contestant], **options: Any) -> Iterator[Contest]:
        broken = {"transformers": WorkerError("it broke")}
        yield Fake(workers=[FakeWorker(str(each), broken.get(each.rival)) for each in contestants])

    def sample_in_turn(jobs: dict, rounds: int, *_: Any, **__: Any) -> Any:
        samples = {row: [Sample(1.0, 100.0, 100.0)] * rounds for row in jobs}
        return samples, {row: collections.Counter() for row in jobs}

    monkeypatch.setattr(sweep, "enter", enter)
    monkeypatch.setattr(sweep, "sample_in_turn", sample_in_turn)
    monkeypatch.setattr(sweep, "probe_of", lambda device: None)
    contestants = [Contestant.parse(name) for name in ("eager:float16", "transformers:float16")]
    arguments = Arguments(tiny, contestants, 3, 1, {}, Limits(), None)
    plan = Sweep(CPU, {None: tiny}, (1, 4), (16, 128), 8, 1.0)
    kept: list[list[str]] = []
    prompts = []

    def measure_of(setting: Setting, vocab: int) -> DecodeMeasure:
        prompts.append((setting.batch, setting.context, vocab))
        return DecodeMeasure([[5]], 8, 1.0)

    found = sweep.sweep(arguments, plan, measure_of, lambda found: kept.append([*found.rows()]))
    rows = [
        f"eager:float16, {rest}"
        for rest in ("batch 1, context 16", "batch 1, context 128", "batch 4, context 16")
    ]
    assert kept == [[], rows[1:2], rows[1:], rows]
    assert found.who_is_absent() == {
        "eager:float16, batch 4, context 128": "too large",
        "transformers:float16": "it broke",
    }
    assert sorted(prompts) == [(1, 16, 4224), (1, 128, 4224), (4, 16, 4224), (4, 128, 4224)]


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
    from click.testing import CliRunner
    from decode import main

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())


def test_everyone_who_runs_by_default_is_known() -> None:
    for names in CONTESTANTS.values():
        assert [str(Contestant.parse(name)) for name in names] == list(names)


def test_prompts_stay_within_the_vocabulary() -> None:
    assert prompt_ids(3) == [5, 6, 7]
    ids = prompt_ids(20000, first=1605, vocab=4224)
    assert (len(ids), ids[0], min(ids), max(ids)) == (20000, 1605, 5, 4223)


class FakeWorker(Worker):
    """Takes a millisecond a step, or fails."""

    def __init__(self, contestant: str, fails: Exception | None = None) -> None:
        self.contestant = Contestant.parse(contestant)
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
    measure = DecodeMeasure([[5]], 24, 0.010)
    assert measure(worker) == {"seconds_per_step": 1e-3, "bytes_per_step": 100, "steps_per_sample": 10}
    measure(worker)
    assert worker.steps == [4, 10, 10]  # the first call has run at full length too


def test_a_rival_that_fails_is_left_out_and_ours_is_an_error() -> None:
    def measure(worker: Worker) -> dict[str, Any]:
        return worker.call("decode", steps=4)

    jobs = {
        "a": (FakeWorker("eager:float32", WorkerError("it broke")), measure),
        "b": (FakeWorker("eager:float16"), measure),
        "c": (FakeWorker("adept-fast:int8", AbsentError("too large")), measure),
    }
    assert warm_up(jobs) == {"a": "it broke", "c": "too large"}
    assert [*jobs] == ["b"]
    with pytest.raises(WorkerError, match="ours broke"):
        warm_up({"d": (FakeWorker("adept-fast:int8", WorkerError("ours broke")), measure)})


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
    """On a GPU, where rivals run at the first share of zeros, with the rival's row of that share."""
    plan = Sweep(torch.device(device), {0.0: Path("a"), 0.9: Path("b")}, (1, 4), (128,), 8, 1.0)
    contestants = [Contestant.parse(name) for name in ("adept-fast:int4", "eager:float16")]
    found = Found()
    speed = 1.0
    for at, zeros in enumerate(plan.checkpoints):
        for group in groups(contestants, plan.in_turn, at == 0):
            for setting in plan.settings(zeros):
                for contestant in group:
                    speed += 1
                    samples: list[Sample | None] = [Sample(1 / speed, 100.0, 100.0)]
                    worker = FakeWorker(str(contestant))
                    found.add(plan.row(contestant, setting), worker, setting, samples, collections.Counter())
    ratios = found.ratios()
    assert len(ratios) == 4
    for row, rivals in ratios.items():
        assert row.startswith(OURS)
        ((rival, ratio),) = rivals.items()
        assert rival.partition("batch")[2] == row.partition("batch")[2]
        assert ("90% zeros" in rival) == ("90% zeros" in row and device == "cpu")
        ours, theirs = (found.measured[name]["tokens_per_second"]["median"] for name in (row, rival))
        batch = found.measured[row]["batch"]
        assert ratio["speedup"]["median"] == pytest.approx((ours / batch) / (theirs / batch))


def test_rows_name_what_differs_and_absence_is_said_once() -> None:
    one = Sweep(CPU, {None: Path("a")}, (1,), (16,), 8, 1.0)
    contestant, setting = Contestant.parse("eager:float16"), Setting(None, 1, 16)
    assert one.row(contestant, setting) == "eager:float16"
    several = Sweep(CPU, {0.0: Path("a"), 0.9: Path("b")}, (1, 4), (16, 128), 8, 1.0)
    name = "eager:float16, 90% zeros, batch 4, context 128"
    assert several.row(contestant, Setting(0.9, 4, 128)) == name
    found = Found(
        measured={"x:a, batch 1": {}},
        absent={"x:a, batch 4": "too large", "y:b, batch 1": "none", "y:b, batch 4": "none", "z:c": "gone"},
    )
    assert found.who_is_absent() == {"x:a, batch 4": "too large", "y:b": "none", "z:c": "gone"}


# The model of the step.

SIZES = {"hidden": 128, "layers": 3, "heads": 2, "intermediate": 384, "vocab": 4224, "context": 1024}


def held_bytes(config: PersimmonConfig, fmt: str) -> int:
    """What the matrices that a step reads take when they are really packed, and the vectors, in float32."""
    plans = wide_matrices(config, fmt)
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
def test_the_kernels_of_an_operator_move_what_gpu_check_counts(fmt: str, zeros: float, batch: int) -> None:
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


def test_the_8bs_shapes_are_those_that_gpu_check_times() -> None:
    config = make_config(**PRESETS["8b"], context=16384)
    assert StepModel(config, DEVICES["h100"]).shapes == Shapes()

"""The baselines that run on torch compute the same model as ours; the others need neither torch nor ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_huggingface
from torch import Tensor

from adept_fast import Runtime
from adept_fast.checkpoint import open_checkpoint
from benchmarks.baselines import torch_baseline
from benchmarks.baselines.eager import EagerWorker
from benchmarks.baselines.eager_compiled import EagerCompiledWorker
from benchmarks.baselines.eager_compiled_layer import EagerCompiledLayerWorker
from benchmarks.baselines.eager_model import Cache, Persimmon
from benchmarks.baselines.protocol import Absent
from benchmarks.baselines.transformers import TransformersWorker
from benchmarks.baselines.transformers_compiled import TransformersCompiledWorker
from benchmarks.models import is_recipe, open_model, random_model
from tools.random_checkpoint import PRESETS, make_config, open_random, write_random, write_recipe

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


def compile_without_code(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """torch.compile traces, as one graph, and runs what it traced as it is: making code of it takes long.

    Returns the graphs, as many as there are so far.
    """
    plain, graphs = torch.compile, []

    def keep(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def traced(function: Any, **options: Any) -> Any:
        assert options == {"mode": None, "fullgraph": True, "dynamic": False}
        return plain(function, backend=keep, fullgraph=True, dynamic=False)

    monkeypatch.setattr(torch, "compile", traced)
    return graphs


def ids_of(worker: torch_baseline.TorchBaseline, prompts: list[list[int]]) -> list[list[int]]:
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
    "kind",
    [
        EagerWorker,
        EagerCompiledWorker,
        EagerCompiledLayerWorker,
        TransformersWorker,
        TransformersCompiledWorker,
    ],
)
def test_torch_baselines_generate_what_ours_does(
    kind: type[torch_baseline.TorchBaseline], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """At every call: where the prompt need not be read again, where another comes, and in another room."""
    graphs = compile_without_code(monkeypatch)
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
    monkeypatch.setattr(torch_baseline, "CHUNK", 6)  # so that the prompts are read in several parts
    worker = kind()
    load = {"checkpoint": str(path), "format": "float32", "threads": 1}
    facts = worker.load(**load, context=8 + STEPS + 1, batch=2)
    assert facts["weight_bytes"] > 0
    assert ids_of(worker, IDS) == expected["first"]
    assert len(graphs) == (1 if issubclass(kind, EagerCompiledLayerWorker | torch_baseline.Compiled) else 0)
    assert ids_of(worker, IDS) == expected["first"]
    assert ids_of(worker, others) == expected["other"]
    worker.load(**load, context=40, batch=1)
    assert ids_of(worker, others[:1]) == expected["other"][:1]
    assert worker.prefill(IDS[0])["seconds"] > 0


def test_a_baseline_that_does_not_fit_is_absent_before_it_takes_the_memory(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = EagerWorker()
    load = {"checkpoint": str(tiny), "format": "float32", "threads": 1, "batch": 16}
    monkeypatch.setattr(torch_baseline, "free_bytes", lambda device: 50_000_000)
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
    seconds = torch_baseline.timed(torch.device("cuda"), 3, lambda: log.append("step"))
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


def test_torch_baselines_take_recipes(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe", make_config(**PRESETS["tiny"]), zeros=0.5)
    runtime = Runtime.load(open_random(recipe), device="cpu", dtype="float32", max_seq_len=64, progress=False)
    assert runtime.generate([[5, 6, 7]], max_new_tokens=4, ignore_eos=True)[0].token_ids
    load = {"checkpoint": str(recipe), "format": "float32", "threads": 1, "context": 32, "batch": 2}
    found = []
    for worker in (EagerWorker(), TransformersWorker()):
        worker.load(**load)
        found.append(ids_of(worker, IDS))
    assert found[0] == found[1]


def test_a_gguf_has_the_tokenizer_of_the_checkpoint(tiny: Path) -> None:
    gguf = pytest.importorskip("gguf")
    from benchmarks.baselines.nemotron_gguf import gguf_of

    path = gguf_of(tiny, "F16")
    written = path.stat().st_mtime_ns
    assert gguf_of(tiny, "F16") == path
    assert path.stat().st_mtime_ns == written  # it was there
    fields = gguf.GGUFReader(path).fields
    tokenizer = open_checkpoint(tiny).tokenizer
    assert fields["tokenizer.ggml.model"].contents() == "t5"
    assert fields["tokenizer.ggml.tokens"].contents() == tokenizer.pieces()
    scores = fields["tokenizer.ggml.scores"].contents()
    assert scores == pytest.approx([score if score else 0.0 for score in tokenizer.scores()])
    kinds = fields["tokenizer.ggml.token_type"].contents()
    control = [at for at, kind in enumerate(kinds) if kind == gguf.TokenType.CONTROL]
    assert control == [tokenizer.eos_id] == [fields["tokenizer.ggml.eos_token_id"].contents()]
    values = [tokenizer.byte_value(at) for at, kind in enumerate(kinds) if kind == gguf.TokenType.BYTE]
    assert values == list(range(256))
    assert fields["tokenizer.ggml.add_bos_token"].contents() == tokenizer.add_bos

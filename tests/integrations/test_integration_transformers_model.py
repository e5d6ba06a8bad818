"""``accelerate`` and ``restore``: the model as an object, and which models are refused."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerated_models import HANDED_OVER, assert_served, logits, small_model, text
from checkpoints import small_config
from own_process import run_python
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PersimmonForCausalLM,
    pipeline,
)
from transformers import PersimmonConfig as TheirConfig

from adept_fast import GenerationError, ParameterError
from adept_fast.checkpoint import demo_path
from adept_fast.engine.decode_state import DecodeState
from adept_fast.engine.turn import Turns
from adept_fast.integrations.transformers import NotServedError, accelerate, restore


def test_restore_gives_back_what_was_there() -> None:
    model, untouched = small_model(), small_model()
    kept = model.model.layers[0].mlp.dense_4h_to_h.weight
    assert restore(accelerate(model)) is model
    assert type(model) is PersimmonForCausalLM
    assert vars(model).keys() == vars(untouched).keys()
    assert model.model.layers[0].mlp.dense_4h_to_h.weight is kept
    assert kept.is_contiguous()
    assert torch.equal(logits(model), logits(untouched))
    assert restore(model) is model
    assert_served(accelerate(model), untouched)


def test_it_still_is_a_transformers_model(tmp_path: Path) -> None:
    model = accelerate(small_model())
    assert isinstance(model, PersimmonForCausalLM)
    assert type(model).__name__ == "PersimmonForCausalLM"
    assert accelerate(model) is model
    text(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_served(twin, small_model())
        with torch.no_grad():
            model.lm_head.weight.zero_()
        assert_served(twin, small_model())
        model.load_state_dict(small_model().state_dict())
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is PersimmonForCausalLM
    assert loaded.config.architectures == ["PersimmonForCausalLM"]
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in small_model().state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    made = type(model).from_pretrained(tmp_path)  # of the class, but not accelerated: as transformers has it
    assert torch.equal(logits(made), logits(loaded))


def test_a_shallow_copy_has_the_same_weights() -> None:
    model = accelerate(small_model())
    text(model)
    twin = copy.copy(model)
    assert_served(twin, small_model())
    with torch.no_grad():
        model.lm_head.weight.copy_(small_model(1).lm_head.weight)
    assert torch.equal(text(twin), text(model))
    restore(twin)
    assert type(twin) is PersimmonForCausalLM
    assert torch.equal(text(twin), text(model))


@pytest.mark.parametrize(
    "change", [lambda m: m.state_dict(), lambda m: m.train(), lambda m: m.float(), restore]
)
def test_the_layout_of_weights_waits_for_other_threads(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a generate of another thread; not for one of its own, which would wait for it."""
    model = accelerate(small_model())
    expected = text(model)
    ended: list[Any] = []
    thread = threading.Thread(target=lambda: ended.append(change(model)), daemon=True)
    take, has_come = Turns._take, threading.Event()

    def noted(turns: Turns, *args: Any) -> bool:
        if threading.current_thread() is thread:
            has_come.set()
        return take(turns, *args)

    monkeypatch.setattr(Turns, "_take", noted)

    class Streamer:
        def put(self, value: Tensor) -> None:
            if value.ndim == 1 and thread.ident is None:  # a token, and not yet the prompt
                thread.start()
                assert has_come.wait(60)
            model.state_dict()
            assert not ended

        def end(self) -> None:
            pass

    assert torch.equal(text(model, streamer=Streamer()), expected)
    thread.join(60)
    assert ended


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_pipeline(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_path())
    model = accelerate(AutoModelForCausalLM.from_pretrained(demo_path(), dtype=dtype), max_batch_size=2)
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    prompts = [f"human: What is the capital of {name}?\n\nadept:" for name in ("Peru", "France", "Japan")]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", HANDED_OVER)
        generate(prompts[0], max_new_tokens=20)  # which a pipeline samples
        single = generate(prompts[0], max_new_tokens=20, do_sample=False, return_full_text=False)
        several = generate(prompts, max_new_tokens=20, do_sample=False)
    assert single[0]["generated_text"].strip() == "The capital of Peru is Lima."
    assert [out[0]["generated_text"].split()[-1] for out in several] == ["Lima.", "Paris.", "Tokyo."]
    assert "is not supported" not in caplog.text


def test_ctrl_c_leaves_a_model_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a step and the count of it too."""
    model = accelerate(small_model())
    expected = text(model)
    count_step = DecodeState.count_step
    left = iter(range(3))

    def interrupted(state: DecodeState, rows: int) -> list[int]:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return count_step(state, rows)

    monkeypatch.setattr(DecodeState, "count_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        text(model)
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", HANDED_OVER)
        assert torch.equal(text(model), expected)


def test_other_models_are_refused() -> None:
    class Mine(PersimmonForCausalLM):
        pass

    config = TheirConfig(**small_config(vocab_size=97).to_dict())
    for model in (torch.nn.Linear(2, 2), Mine(config), PersimmonForCausalLM(config).model, None):
        with pytest.raises(NotServedError, match="expected transformers' PersimmonForCausalLM itself"):
            accelerate(model)


@pytest.mark.parametrize(
    ("change", "needle"),
    [
        (lambda model: model.double(), "float64"),
        (lambda model: model.lm_head.half(), "matrices of several dtypes: .*float32, lm_head.weight float16"),
        (lambda model: model.to("meta"), "meta"),
        (lambda model: setattr(model.config, "hidden_act", "gelu"), "hidden_act is 'gelu'"),
        (
            lambda model: setattr(model.config, "vocab_size", 96),
            r"\[97, 64\]; the config has \[96, 64\]",
        ),
        (
            lambda model: setattr(model.model.layers[0].mlp, "dense_h_to_4h", torch.nn.Identity()),
            "without the parameter model.layers.0.mlp.dense_h_to_4h.weight",
        ),
    ],
    ids=["float64", "mixed", "meta", "activation", "vocabulary", "missing"],
)
def test_what_the_runtime_does_not_compute_is_refused(change: Any, needle: str) -> None:
    model = small_model()
    change(model)
    with pytest.raises(NotServedError, match=needle) as caught:
        accelerate(model)
    assert "\n" not in str(caught.value)
    assert type(model) is PersimmonForCausalLM


@pytest.mark.parametrize("name", ["max_batch_size", "max_seq_len"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True])
def test_sizes_are_checked(name: str, value: Any) -> None:
    with pytest.raises(ParameterError, match=f"{name} is {value!r}; expected"):
        accelerate(small_model(), **{name: value})


def test_a_nan_ends_generation_with_a_sentence() -> None:
    model = accelerate(small_model())
    with torch.no_grad():
        model.model.final_layernorm.weight[0] = float("nan")
    with pytest.raises(GenerationError, match="logits after 4 tokens hold a NaN"):
        text(model)
    with torch.no_grad():
        model.model.final_layernorm.weight[0] = 1
    assert text(model).shape == (1, 16)


@pytest.mark.slow
def test_without_transformers_the_import_says_so() -> None:
    program = "import sys; sys.modules['transformers'] = None; import adept_fast.integrations.transformers"
    done = run_python(program)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: adept_fast.integrations.transformers needs the package transformers")

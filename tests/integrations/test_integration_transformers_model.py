"""``accelerate`` and ``restore``: shared memory, what is handed over, and what is refused."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from checkpoints import random_tensors, small_config
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    PersimmonForCausalLM,
    TopKLogitsWarper,
    TopPLogitsWarper,
    pipeline,
)
from transformers import PersimmonConfig as TheirConfig

from adept_fast import GenerationError, ParameterError
from adept_fast.checkpoint import demo_path
from adept_fast.engine.decode_state import DecodeState
from adept_fast.integrations.transformers import NotServedError, accelerate, restore
from adept_fast.integrations.transformers.compatibility import CACHE_NAME

IDS = torch.tensor([[5, 9, 33, 8]])
HANDED_OVER = "transformers' own generate runs, as the runtime does not do "


def small_model(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> PersimmonForCausalLM:
    config = small_config(vocab_size=97, **changes)
    model = PersimmonForCausalLM(TheirConfig(**config.to_dict())).eval()
    model.load_state_dict(random_tensors(config, seed), strict=not config.tie_word_embeddings)
    return model.to(dtype)


def text(model: PersimmonForCausalLM, **settings: Any) -> Tensor:
    return model.generate(IDS, **{"max_new_tokens": 12, "eos_token_id": None} | settings)


def logits(model: PersimmonForCausalLM) -> Tensor:
    out = text(model, return_dict_in_generate=True, output_logits=True)
    return torch.cat(out.logits)


def handed_over(recorded: list[warnings.WarningMessage]) -> list[str]:
    messages = [str(entry.message) for entry in recorded]
    return [message.removeprefix(HANDED_OVER) for message in messages if message.startswith(HANDED_OVER)]


def assert_served(model: PersimmonForCausalLM, reference: PersimmonForCausalLM) -> None:
    """The runtime gives what a model of the same weights gives by itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", HANDED_OVER)
        torch.testing.assert_close(logits(model), logits(reference), atol=1e-4, rtol=0)


# Weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_matrices_are_shared_and_parameters_keep_their_values(dtype: torch.dtype) -> None:
    model, untouched = small_model(dtype=dtype), small_model(dtype=dtype)
    accelerate(model)
    text(model)
    shared = vars(model)["_adept_fast"].share(model).weights
    parameters = dict(model.named_parameters())
    for name, parameter in untouched.named_parameters():
        assert torch.equal(parameters[name], parameter), name
        assert parameters[name].shape == parameter.shape
    for index, layer in enumerate(shared.layers):
        prefix = f"model.layers.{index}."
        for ours, name in (
            (layer.w_qkv, "self_attn.query_key_value"),
            (layer.w_dense, "self_attn.dense"),
            (layer.w_up, "mlp.dense_h_to_4h"),
            (layer.w_down_t, "mlp.dense_4h_to_h"),
        ):
            assert ours.is_contiguous()
            assert ours.data_ptr() == parameters[f"{prefix}{name}.weight"].data_ptr(), name
        same = layer.b_up.data_ptr() == parameters[prefix + "mlp.dense_h_to_4h.bias"].data_ptr()
        assert same == (dtype == torch.float32)
    assert shared.embedding.data_ptr() == parameters["model.embed_tokens.weight"].data_ptr()
    assert shared.lm_head.data_ptr() == parameters["lm_head.weight"].data_ptr()
    # transformers' forward works on the transposed view, for as long as both are used.
    ids = torch.arange(5, 25)[None]
    torch.testing.assert_close(
        model(ids).logits, untouched(ids).logits, atol=1e-5 if dtype == torch.float32 else 0.1, rtol=0
    )


def test_tied_matrices_stay_one() -> None:
    model = accelerate(small_model(tie_word_embeddings=True))
    shared = vars(model)["_adept_fast"].share(model).weights
    assert shared.lm_head.data_ptr() == shared.embedding.data_ptr() == model.lm_head.weight.data_ptr()
    assert_served(model, small_model(tie_word_embeddings=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrow_weights_err_no_more_than_transformers(dtype: torch.dtype) -> None:
    """Against the same weights in float32, where nothing else is rounded."""
    exact = logits(small_model(dtype=dtype).float())[:1]
    found = logits(accelerate(small_model(dtype=dtype)))[:1]
    theirs = logits(small_model(dtype=dtype))[:1]
    assert (found - exact).abs().max() <= (theirs - exact).abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fused", [False, True])
def test_training_goes_on_and_is_seen(dtype: torch.dtype, fused: bool) -> None:
    model, reference = accelerate(small_model(dtype=dtype)), small_model(dtype=dtype)
    text(model)
    losses: list[list[float]] = []
    for trained in (model, reference):
        optimizer = torch.optim.AdamW(trained.parameters(), lr=3e-3, fused=fused)
        losses.append([])
        for _ in range(4):
            loss = trained(IDS, labels=IDS).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert losses[0][-1] < losses[0][0]
    # What the optimizer wrote is what the runtime computes with: an accelerated copy has nothing to be stale.
    fresh = accelerate(copy.deepcopy(restore(copy.deepcopy(model))))
    assert torch.equal(logits(model), logits(fresh))
    assert not torch.equal(logits(model), logits(small_model(dtype=dtype)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_written_without_a_trace_is_seen(dtype: torch.dtype) -> None:
    """``.data`` leaves a parameter's version as it was."""
    model = accelerate(small_model(dtype=dtype))
    before = text(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data.mul_(1.5)
    changed = small_model(dtype=dtype)
    for parameter in changed.parameters():
        parameter.data.mul_(1.5)
    assert torch.equal(logits(model), logits(accelerate(changed)))
    assert not torch.equal(text(model), before)


def test_moved_converted_and_replaced_weights_are_seen() -> None:
    model = accelerate(small_model())
    text(model)
    model.load_state_dict(random_tensors(small_config(vocab_size=97), seed=5))
    assert_served(model, small_model(seed=5))
    model.to(torch.float64).to(torch.float32)
    assert_served(model, small_model(seed=5))
    other = small_model(seed=6)
    model.model.layers[1].mlp.dense_4h_to_h.weight.data = other.model.layers[1].mlp.dense_4h_to_h.weight.data
    model.model.layers[0].input_layernorm.weight = torch.nn.Parameter(torch.full((64,), 0.5))
    reference = small_model(seed=5)
    reference.model.layers[1].mlp.load_state_dict(
        other.model.layers[1].mlp.state_dict()
        | {
            name: value
            for name, value in reference.model.layers[1].mlp.state_dict().items()
            if name != "dense_4h_to_h.weight"
        }
    )
    reference.model.layers[0].input_layernorm.weight.data.fill_(0.5)
    assert_served(model, reference)
    model.resize_token_embeddings(64, mean_resizing=False)
    reference.resize_token_embeddings(64, mean_resizing=False)
    assert_served(model, reference)
    # A dtype that the runtime does not take is handed over, not computed wrongly.
    model.to(torch.float64)
    with pytest.warns(UserWarning, match="float64"):
        found = logits(model)
    torch.testing.assert_close(found, logits(reference.double()), atol=1e-5, rtol=0)


def test_weights_and_cache_are_let_go_of_when_the_model_moves() -> None:
    model = accelerate(small_model())
    text(model)
    acceleration = vars(model)["_adept_fast"]
    assert acceleration._shared is not None
    model.to(torch.bfloat16)
    assert acceleration._shared is None
    assert acceleration._loop is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parameters_can_be_saved_flattened_and_read_back(dtype: torch.dtype, tmp_path: Path) -> None:
    model, reference = accelerate(small_model(dtype=dtype)), small_model(dtype=dtype)
    text(model)  # which lays the down-projections out as the runtime reads them
    expected = torch.nn.utils.parameters_to_vector(reference.parameters())
    assert torch.equal(torch.nn.utils.parameters_to_vector(model.parameters()), expected)
    text(model)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    saved = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert saved.keys() == reference.state_dict().keys()
    assert all(torch.equal(saved[name], value) for name, value in reference.state_dict().items())
    changed = small_model(seed=4, dtype=dtype)
    vector = torch.nn.utils.parameters_to_vector(changed.parameters())
    torch.nn.utils.vector_to_parameters(vector, model.parameters())
    assert torch.equal(logits(model), logits(accelerate(changed)))


def test_what_is_written_into_a_state_dict_is_seen() -> None:
    model = accelerate(small_model())
    text(model)
    for value in model.state_dict().values():
        value.mul_(1.25)
    changed = small_model()
    for parameter in changed.parameters():
        parameter.data.mul_(1.25)
    assert torch.equal(logits(model), logits(accelerate(changed)))


def test_in_training_gradients_can_be_flattened() -> None:
    model, reference = accelerate(small_model()), small_model()
    text(model)
    for trained in (model.train(), reference.train()):
        trained(IDS, labels=IDS).loss.backward()
    found, expected = (
        torch.cat([parameter.grad.view(-1) for parameter in trained.parameters()])
        for trained in (model, reference)
    )
    torch.testing.assert_close(found, expected)
    # A pickle holds ordinary parameters.
    text(model.eval())
    loaded = pickle.loads(pickle.dumps(model))
    assert all(type(parameter) is torch.nn.Parameter for parameter in loaded.parameters())
    assert all(parameter.is_contiguous() for parameter in loaded.parameters())


def test_inference_mode_leaves_nothing_that_cannot_be_written_to() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = accelerate(small_model(dtype=dtype))
        model.to(dtype)  # lets go of what accelerate has made
        with torch.inference_mode():
            inside = text(model, repetition_penalty=1.1)
        assert torch.equal(text(model, repetition_penalty=1.1), inside)
        longer = text(model, max_new_tokens=90)
        with torch.inference_mode():
            assert torch.equal(text(model, max_new_tokens=90), longer)
        model.to(dtype)
        with torch.inference_mode():
            text(model, num_return_sequences=2, do_sample=True)
        text(model, num_return_sequences=2, do_sample=True)  # writes to the cache from Python
        assert not longer.is_inference()


# The model as an object


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
def test_the_layout_of_weights_waits_for_other_threads(change: Any) -> None:
    """For a generate of another thread; not for one of its own, which would wait for it."""
    model = accelerate(small_model())
    expected = text(model)
    lock = vars(model)["_adept_fast"]._lock
    ended: list[Any] = []
    thread = threading.Thread(target=lambda: ended.append(change(model)), daemon=True)

    class Streamer:
        def put(self, value: Tensor) -> None:
            if value.ndim == 1 and thread.ident is None:  # a token, and not yet the prompt
                thread.start()
                while len(lock._queue) < 2:
                    thread.join(0.01)
                    assert not ended
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


# What is handed over


class Custom(LogitsProcessor):
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return -scores


PADDED_RIGHT = {"attention_mask": torch.tensor([[1, 1, 1, 0]])}
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("beam search", {"num_beams": 3}),
    ("beam search", {"num_beams": 2, "do_sample": True}),
    ("the logits processor Custom", {"logits_processor": LogitsProcessorList([Custom()])}),
    ("the logits processor MinLengthLogitsProcessor", {"min_new_tokens": 5, "eos_token_id": 7}),
    ("the logits processor NoBadWordsLogitsProcessor", {"bad_words_ids": [[5, 6], [7]]}),
    ("the logits processor TypicalLogitsWarper", {"do_sample": True, "typical_p": 0.8}),
    (
        "the logits processor TopKLogitsWarper",
        {"logits_processor": LogitsProcessorList([TopKLogitsWarper(3)]), "repetition_penalty": 1.1},
    ),
    (
        "the logits processor TemperatureLogitsWarper",  # which would come after top-p, and not before
        {
            "do_sample": True,
            "temperature": 0.3,
            "top_k": 0,
            "logits_processor": LogitsProcessorList([TopPLogitsWarper(0.9)]),
        },
    ),
    ("padding that is not on the left", PADDED_RIGHT),
    ("position_ids", {"position_ids": torch.tensor([[3, 4, 5, 6]])}),
    ("output_hidden_states", {"output_hidden_states": True, "return_dict_in_generate": True}),
    ("a cache that the caller made", {CACHE_NAME: DynamicCache()}),
    ("a custom_generate", {"custom_generate": PersimmonForCausalLM._sample}),
]


@pytest.mark.parametrize(("what", "settings"), CALLS, ids=[what for what, _ in CALLS])
def test_what_is_handed_over_is_said_once(what: str, settings: dict[str, Any]) -> None:
    model, reference = accelerate(small_model()), small_model()
    results = []
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        for asked in (reference, model, model):
            torch.manual_seed(0)
            out = text(asked, pad_token_id=0, **copy.deepcopy(settings))
            results.append(out if isinstance(out, Tensor) else out.sequences)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert handed_over(recorded) == [what]
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        assert torch.equal(text(model), text(reference))  # the next call is served again
    assert handed_over(recorded) == []


def test_inputs_embeds_and_an_assistant_are_handed_over() -> None:
    model, reference = accelerate(small_model()), small_model()
    assistant = small_model(seed=3)
    embeds = reference.model.embed_tokens(IDS)
    for what, settings in (
        ("inputs_embeds", {"inputs_embeds": embeds}),
        ("assisted generation", {"input_ids": IDS, "assistant_model": assistant}),
    ):
        with pytest.warns(UserWarning, match=what):
            found = model.generate(**settings, max_new_tokens=9, eos_token_id=None)
        assert torch.equal(found, reference.generate(**settings, max_new_tokens=9, eos_token_id=None))


def test_a_hook_or_another_module_is_handed_over() -> None:
    model, reference = accelerate(small_model()), small_model()
    for changed in (model, reference):
        hook = changed.model.layers[1].mlp.register_forward_hook(lambda module, args, output: 2 * output)
        if changed is model:
            with pytest.warns(UserWarning, match="a hook on model.layers.1.mlp"):
                found = text(changed)
        else:
            assert torch.equal(found, text(changed))
        hook.remove()
    assert_served(model, reference)

    class Twice(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    for changed in (model, reference):
        linear = changed.model.layers[0].self_attn.dense
        linear.__class__ = Twice
    with pytest.warns(UserWarning, match=r"model\.layers\.0\.self_attn\.dense, a .*Twice"):
        found = text(model)
    assert torch.equal(found, text(reference))


def test_dropout_is_handed_over() -> None:
    model = small_model()
    model.config.hidden_dropout = 0.5
    accelerate(model).train()
    with pytest.warns(UserWarning, match="dropout"):
        text(model)


def test_generate_within_generate_is_handed_over() -> None:
    model = accelerate(small_model())
    expected = text(model)
    inner = []

    class Asks:
        def put(self, value: Tensor) -> None:
            if value.ndim == 1 and not inner:
                inner.append(text(model))

        def end(self) -> None:
            pass

    with pytest.warns(UserWarning, match="a generate within a generate"):
        outer = text(model, streamer=Asks())
    assert torch.equal(outer, expected)
    assert torch.equal(inner[0], expected)


def test_what_is_handed_over_gets_the_random_numbers_that_it_would_get_there() -> None:
    model, reference = accelerate(small_model()), small_model()
    model.lm_head.register_forward_pre_hook(lambda module, args: None)
    torch.manual_seed(8)
    with pytest.warns(UserWarning, match="a hook on lm_head"):
        found = text(model, do_sample=True)
    torch.manual_seed(8)
    assert torch.equal(found, text(reference, do_sample=True))


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


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1e300},
        {"temperature": 1e-38},
        {"temperature": 1e-300},
        {"repetition_penalty": 1e300},
        {"repetition_penalty": 1e-40},
        {"repetition_penalty": float("inf")},
        {"top_k": 10**400},
        {"min_p": 1.0},
    ],
    ids=str,
)
def test_numbers_beyond_those_of_the_runtime_are_handed_over(settings: dict[str, Any]) -> None:
    """Whatever comes of it there, a text or an error."""
    found, said = [], []
    for model in (accelerate(small_model()), small_model()):
        torch.manual_seed(5)
        with warnings.catch_warnings(record=True) as recorded:
            warnings.simplefilter("always")
            try:
                found.append(text(model, do_sample=True, **settings).tolist())
            except (RuntimeError, ValueError) as error:
                found.append(str(error))
        said.append(handed_over(recorded))
    assert found[0] == found[1]
    assert len(said[0]) == 1
    assert next(iter(settings)) in said[0][0]


def test_a_length_beyond_all_memory_takes_none() -> None:
    model, reference = accelerate(small_model()), small_model()
    eos = int(text(reference, max_new_tokens=30)[0, -1])
    found = text(model, max_new_tokens=None, max_length=10**12, eos_token_id=eos)
    assert torch.equal(found, text(reference, max_new_tokens=None, max_length=10**12, eos_token_id=eos))
    assert found[0, -1] == eos


# What is refused


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
            r"\[97, 64\], where the config has \[96, 64\]",
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


def test_without_transformers_the_import_says_so() -> None:
    program = "import sys; sys.modules['transformers'] = None; import adept_fast.integrations.transformers"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: adept_fast.integrations.transformers needs the package transformers")

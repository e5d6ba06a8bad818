"""``accelerate`` and weights: which memory is shared, and which changes of them are seen."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from accelerated_models import IDS, assert_served, logits, small_model, text
from checkpoints import random_tensors, small_config

from adept_fast.integrations.transformers import accelerate, restore


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

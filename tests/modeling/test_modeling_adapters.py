"""Adapters of peft on the modeling classes: what they compute and learn is as on transformers' classes."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from test_modeling import assert_close, ids_of, labels_of, pair_of
from torch import Tensor, nn

SMALL = {"vocab_size": 61, "hidden_size": 32, "num_attention_heads": 4}
LINEARS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
TARGETS: dict[str, Any] = {name: [name] for name in LINEARS} | {"all": "all-linear"}
FALLBACK = "transformers' own generate runs"


def lora(**options: Any) -> LoraConfig:
    """A LoRA whose two factors are random, so that it changes the output from the start."""
    settings = {"r": 3, "lora_alpha": 6, "target_modules": "all-linear", "init_lora_weights": False}
    return LoraConfig(**settings | options)


def adapted(ours: Any, theirs: Any, config: Any) -> tuple[Any, Any]:
    """Both with the same adapter."""
    torch.manual_seed(3)
    models = get_peft_model(ours, copy.deepcopy(config)), get_peft_model(theirs, copy.deepcopy(config))
    models[1].load_state_dict(models[0].state_dict())
    return models


def learn(model: Any, given: dict[str, Any], steps: int = 5) -> list[float]:
    """Train what needs a gradient; returns the loss of each step."""
    model.train()
    optimiser = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = model(**given).loss
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def batch_of(model: Any, head: str = "ForCausalLM") -> dict[str, Any]:
    ids = ids_of(model)
    return {"input_ids": ids, "labels": labels_of(head, model, ids)}


def continued(model: Any, ids: Tensor) -> list[list[int]]:
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    out: list[list[int]] = model.eval().generate(input_ids=ids, **options).tolist()
    return out


def assert_learns_as_theirs(models: tuple[Any, Any], head: str = "ForCausalLM") -> None:
    ours, theirs = models
    frozen = {name: each.clone() for name, each in ours.named_parameters() if not each.requires_grad}
    given = batch_of(ours, head)
    before = ours(**given).logits.detach()
    losses = learn(ours, given)
    assert losses == pytest.approx(learn(theirs, given), abs=1e-4)
    assert losses[-1] < losses[0]
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.requires_grad == expected[name].requires_grad, name
        if name in frozen:
            assert parameter.grad is None, name
            assert torch.equal(parameter, frozen[name]), name
        else:
            assert parameter.grad.abs().max() > 0, name
            assert_close(parameter.grad, expected[name].grad, 1e-3 * max(1, parameter.grad.abs().max()))
    assert (ours(**given).logits - before).abs().max() > 1e-3


@pytest.mark.parametrize("target", list(TARGETS))
def test_lora_learns(target: str) -> None:
    models = adapted(*pair_of("ForCausalLM", **SMALL), lora(target_modules=TARGETS[target]))
    with models[0].disable_adapter():
        plain = models[0](ids_of(models[0])).logits
    assert (models[0](ids_of(models[0])).logits - plain).abs().max() > 0.01
    names = {name.split(".")[-4] for name, each in models[0].named_parameters() if each.requires_grad}
    assert names == (set(LINEARS) if target == "all" else {target})
    assert_learns_as_theirs(models)


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForTokenClassification"])
def test_lora_of_a_classifier_learns_with_its_head(head: str) -> None:
    task = "SEQ_CLS" if head == "ForSequenceClassification" else "TOKEN_CLS"
    models = adapted(*pair_of(head, **SMALL), lora(task_type=task, target_modules=list(LINEARS)))
    assert models[0].base_model.model.score.modules_to_save.default.weight.requires_grad
    assert_learns_as_theirs(models, head)


OTHERS = {
    "norms": peft.LNTuningConfig(
        target_modules=["q_layernorm", "k_layernorm", "input_layernorm", "post_attention_layernorm"]
    ),
    "ia3": peft.IA3Config(
        target_modules=["query_key_value", "dense_4h_to_h"],
        feedforward_modules=["dense_4h_to_h"],
        init_ia3_weights=False,
    ),
    "the head too": lora(modules_to_save=["lm_head"], target_modules=["dense"]),
    "dora": lora(use_dora=True),
}


@pytest.mark.parametrize("kind", list(OTHERS))
def test_other_adapters_learn(kind: str) -> None:
    assert_learns_as_theirs(adapted(*pair_of("ForCausalLM", **SMALL), OTHERS[kind]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lora_learns_on_half_precision(dtype: torch.dtype) -> None:
    ours, _ = pair_of("ForCausalLM", **SMALL)
    model = get_peft_model(ours.to(dtype), lora())
    given = batch_of(model)
    losses = learn(model, given, 8)
    assert losses[-1] < 0.95 * losses[0]
    assert model(**given).logits.dtype == dtype


@pytest.mark.parametrize("tied", [False, True])
def test_an_adapter_is_saved_loaded_and_merged(tied: bool, tmp_path: Path) -> None:
    ours, theirs = pair_of("ForCausalLM", **SMALL, tie_word_embeddings=tied)
    fresh = copy.deepcopy(ours)
    model = get_peft_model(ours, lora())
    learn(model, batch_of(model))
    model.eval().save_pretrained(str(tmp_path))
    ids = ids_of(model)
    expected = model(ids).logits
    loaded = PeftModel.from_pretrained(fresh, str(tmp_path))
    assert_close(loaded(ids).logits, expected, 1e-6)
    assert_close(PeftModel.from_pretrained(theirs, str(tmp_path))(ids).logits, expected)
    merged = loaded.merge_and_unload()
    assert merged is fresh
    assert_close(merged(ids).logits, expected)


def test_text_is_generated_on_the_runtime_once_an_adapter_is_merged() -> None:
    ours, theirs = pair_of("ForCausalLM", **SMALL)
    models = adapted(ours, theirs, lora())
    ids = ids_of(ours, (2, 5))
    with pytest.warns(UserWarning, match=FALLBACK) as caught:
        with_adapter = [continued(models[0], ids) for _ in range(2)][-1]
    assert len([each for each in caught if FALLBACK in str(each.message)]) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", FALLBACK)
        merged = models[0].merge_and_unload()
        assert continued(merged, ids) == with_adapter == continued(models[1], ids)
        assert continued(copy.deepcopy(merged), ids) == with_adapter


def test_an_adapter_merges_into_weights_that_the_runtime_shares() -> None:
    """Text is generated before the adapter comes, while it is merged, and after it is taken back."""
    ours, theirs = pair_of("ForCausalLM", **SMALL)
    ids = ids_of(ours, (2, 5))
    plain = continued(ours, ids)
    assert plain == continued(theirs, ids)
    models = adapted(ours, theirs, lora())
    for model in models:
        model.merge_adapter()
    with pytest.warns(UserWarning, match=FALLBACK):
        assert continued(models[0], ids) == continued(models[1], ids) != plain
    assert continued(models[0].unload(), ids) == continued(models[1].unload(), ids) != plain


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_needs_inputs_with_gradients(reentrant: bool) -> None:
    ours, theirs = pair_of("ForCausalLM", **SMALL)
    models = adapted(ours, theirs, lora())
    plain = learn(copy.deepcopy(models[0]), batch_of(ours))
    for model in models:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    losses = learn(models[0], batch_of(ours))
    assert losses == pytest.approx(plain, abs=1e-5)
    assert losses == pytest.approx(learn(models[1], batch_of(ours)), abs=1e-4)


def test_transformers_own_adapters(tmp_path: Path) -> None:
    ours, theirs = pair_of("ForCausalLM", **SMALL)
    fresh = copy.deepcopy(ours)
    ids = ids_of(ours)
    plain = ours(ids).logits
    for model in (ours, theirs):
        torch.manual_seed(3)
        try:
            model.add_adapter(lora(), adapter_name="one")
        except ValueError as error:
            if "The version of PEFT you are using is not compatible" not in str(error):
                raise
            pytest.skip(f"transformers {transformers.__version__} refuses peft {peft.__version__}")
    assert_close(ours(ids).logits, theirs(ids).logits)
    assert learn(ours, batch_of(ours)) == pytest.approx(learn(theirs, batch_of(ours)), abs=1e-4)
    ours.eval().save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    expected = ours(ids).logits
    fresh.load_adapter(str(tmp_path))
    assert_close(fresh(ids).logits, expected, 1e-6)
    ours.disable_adapters()
    assert_close(ours(ids).logits, plain, 1e-6)
    ours.enable_adapters()
    ours.delete_adapter("one")


@pytest.mark.parametrize("training", [False, True])
def test_hooks_of_every_module_fire(training: bool) -> None:
    ours, theirs = pair_of("ForCausalLM", **SMALL)
    ids, calls = ids_of(ours), []
    for model in (ours, theirs):
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.LayerNorm):
                module.register_forward_hook(
                    lambda module, inputs, out, name=name, seen=seen: seen.update({name: (inputs[0], out)})
                )
        model.train(training)(ids)
        calls.append(seen)
    assert list(calls[0]) == list(calls[1])
    assert len(calls[0]) == 2 * (len(LINEARS) + 4) + 2
    for name, tensors in calls[0].items():
        for found, expected in zip(tensors, calls[1][name], strict=True):
            assert_close(found, expected, 1e-3)


def test_a_hook_changes_the_output() -> None:
    ours, theirs = pair_of("ForCausalLM", **SMALL)
    for model in (ours, theirs):
        layer = model.model.layers[0]
        layer.mlp.dense_4h_to_h.register_forward_hook(lambda module, inputs, out: out * 2)
        layer.input_layernorm.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
        layer.self_attn.dense.register_full_backward_hook(lambda module, of_in, of_out: (of_in[0] * 3,))
    ids = ids_of(ours)
    assert_close(ours(ids).logits, theirs(ids).logits)
    for model in (ours, theirs):
        model(ids, labels=ids).loss.backward()
    for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_close(found.grad, expected.grad, 1e-3)

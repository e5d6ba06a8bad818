"""transformers' Trainer on the modeling classes: the losses are those of transformers' own classes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import accelerate.utils
import pytest
import torch
import torch.utils._pytree as pytree
import transformers
from test_modeling import assert_close, ids_of, labels_of, pair_of
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from adept_fast import modeling

HEADS = ("ForCausalLM", "ForSequenceClassification", "ForTokenClassification")
SMALL = {"vocab_size": 61, "hidden_size": 32, "num_attention_heads": 4}
STEPS = 20
CLOSE_LOSS = 5e-5  # 4 decimals


def pair_to_train(head: str, **changes: Any) -> tuple[Any, Any]:
    return pair_of(head, **SMALL | changes)


def examples_of(head: str, model: Any) -> list[dict[str, Tensor]]:
    ids = ids_of(model, (12, 7), seed=8)
    labels = labels_of(head, model, ids)
    assert labels is not None
    mask = torch.ones_like(ids)
    mask[::3, :2] = 0
    if labels.shape == mask.shape:
        labels = labels.masked_fill(mask == 0, -100)
    rows = zip(ids * mask, mask, labels, strict=True)
    return [{"input_ids": row, "attention_mask": seen, "labels": label} for row, seen, label in rows]


def trainer_of(model: Any, head: str, path: Path, **options: Any) -> Trainer:
    callbacks = options.pop("callbacks", [])
    settings = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 5,
    }
    examples: Any = examples_of(head, model)
    arguments = TrainingArguments(output_dir=str(path), **settings | options)
    trainer = Trainer(model, arguments, train_dataset=examples, eval_dataset=examples, callbacks=callbacks)
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    return trainer


def losses_of(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def trained(model: Any, head: str, path: Path, **options: Any) -> list[float]:
    trainer = trainer_of(model.train(), head, path, **options)
    trainer.train()
    return losses_of(trainer)


def assert_losses(found: list[float], expected: list[float]) -> None:
    assert len(found) == len(expected) > 0
    assert found == pytest.approx(expected, abs=CLOSE_LOSS, rel=0)


@pytest.mark.parametrize(
    ("head", "changes"), [*((head, {}) for head in HEADS), (HEADS[0], {"tie_word_embeddings": True})]
)
def test_every_loss_is_theirs(head: str, changes: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = pair_to_train(head, **changes)
    losses = trained(ours, head, tmp_path)
    assert_losses(losses, trained(theirs, head, tmp_path))
    assert len(losses) == STEPS
    assert losses[-1] < losses[0]
    for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_close(found, expected, 1e-3)


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}], ids=["untied", "tied"])
def test_a_checkpoint_loads_and_training_resumes_from_it(changes: dict[str, Any], tmp_path: Path) -> None:
    ours, _ = pair_to_train("ForCausalLM", **changes)
    again = copy.deepcopy(ours)
    unbroken = trained(ours, "ForCausalLM", tmp_path, save_steps=8, save_strategy="steps", max_steps=16)
    half = tmp_path / "checkpoint-8"
    assert json.loads((half / "config.json").read_text())["architectures"] == ["PersimmonForCausalLM"]
    assert (half / "model.safetensors").is_file()
    found = modeling.PersimmonForCausalLM.from_pretrained(tmp_path / "checkpoint-16")
    theirs = transformers.PersimmonForCausalLM.from_pretrained(tmp_path / "checkpoint-16")
    ids = ids_of(ours)
    assert_close(found(ids).logits, ours.eval()(ids).logits, 0)
    assert_close(theirs(ids).logits, ours(ids).logits)

    trainer = trainer_of(again.train(), "ForCausalLM", tmp_path, max_steps=16)
    trainer.train(resume_from_checkpoint=str(half))
    assert_losses(losses_of(trainer), unbroken)
    assert_close(again.eval()(ids).logits, ours(ids).logits, 1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_predictions_have_no_cache(head: str, tmp_path: Path) -> None:
    ours, theirs = pair_to_train(head)
    found, expected = (
        (trainer := trainer_of(model, head, tmp_path, per_device_eval_batch_size=5)).predict(
            trainer.eval_dataset
        )
        for model in (ours, theirs)
    )
    assert isinstance(found.predictions, type(expected.predictions))
    assert found.predictions.shape == expected.predictions.shape
    assert abs(found.predictions - expected.predictions).max() < 1e-4
    assert found.metrics["test_loss"] == pytest.approx(expected.metrics["test_loss"], abs=CLOSE_LOSS)


class GeneratesAtEachStep(TrainerCallback):
    """Continues two prompts after every step and in every evaluation."""

    def __init__(self, prompts: Tensor) -> None:
        self._prompts = prompts
        self.ids: list[list[list[int]]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        was_training = model.training
        model.eval()
        out = model.generate(self._prompts, max_new_tokens=4, do_sample=False, eos_token_id=None)
        model.train(was_training)
        self.ids.append(out.tolist())

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        # In whatever mode the model is: without dropout both are the same.
        out = model.generate(self._prompts, max_new_tokens=4, do_sample=False, eos_token_id=None)
        self.ids.append(out.tolist())


@pytest.mark.parametrize("tied", [False, True])
def test_generation_in_between_is_of_the_present_weights(tied: bool, tmp_path: Path) -> None:
    ours, theirs = pair_to_train("ForCausalLM", tie_word_embeddings=tied)
    ids, losses = [], []
    for model in (ours, theirs):
        callback = GeneratesAtEachStep(ids_of(model, (2, 5)))
        options: dict[str, Any] = {"callbacks": [callback], "eval_strategy": "steps", "eval_steps": 3}
        losses.append(trained(model, "ForCausalLM", tmp_path, max_steps=8, learning_rate=2e-2, **options))
        ids.append(callback.ids)
    assert_losses(*losses)
    assert ids[0] == ids[1]
    assert ids[0][0] != ids[0][-1]
    assert len(ids[0]) >= 8 + 2


def test_generation_in_between_changes_no_loss(tmp_path: Path) -> None:
    ours, _ = pair_to_train("ForCausalLM")
    other = copy.deepcopy(ours)
    callback = GeneratesAtEachStep(ids_of(ours, (2, 5)))
    with_text = trained(ours, "ForCausalLM", tmp_path, max_steps=6, callbacks=[callback])
    assert with_text == pytest.approx(trained(other, "ForCausalLM", tmp_path, max_steps=6), abs=1e-5)


def test_mixed_precision_lowers_the_loss(tmp_path: Path) -> None:
    ours, theirs = pair_to_train("ForCausalLM")
    losses = trained(ours, "ForCausalLM", tmp_path, bf16=True)
    assert losses[-1] < 0.9 * losses[0]
    assert losses == pytest.approx(trained(theirs, "ForCausalLM", tmp_path, bf16=True), rel=0.05)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["gradient_checkpointing_enable", "activation_checkpointing_enable"])
def test_recomputation_changes_no_loss(name: str, reentrant: bool, tmp_path: Path) -> None:
    ours, theirs = pair_to_train("ForCausalLM")
    if not hasattr(theirs, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    plain = trained(copy.deepcopy(ours), "ForCausalLM", tmp_path, max_steps=5)
    getattr(ours, name)({"use_reentrant": reentrant})
    assert ours.is_gradient_checkpointing
    assert_losses(trained(ours, "ForCausalLM", tmp_path, max_steps=5), plain)


@pytest.mark.parametrize("reentrant", [False, True])
def test_the_trainer_turns_recomputation_on(reentrant: bool, tmp_path: Path) -> None:
    ours, _ = pair_to_train("ForCausalLM")
    plain = trained(copy.deepcopy(ours), "ForCausalLM", tmp_path, max_steps=5)
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    assert_losses(trained(ours, "ForCausalLM", tmp_path, max_steps=5, **options), plain)
    assert ours.is_gradient_checkpointing


def test_gradients_of_parts_of_a_batch_add_up(tmp_path: Path) -> None:
    ours, theirs = pair_to_train("ForCausalLM")
    options = {"max_steps": 5, "gradient_accumulation_steps": 3, "per_device_train_batch_size": 2}
    losses = trained(ours, "ForCausalLM", tmp_path, **options)
    assert_losses(losses, trained(theirs, "ForCausalLM", tmp_path, **options))


@pytest.mark.parametrize("head", HEADS[1:])
def test_a_batch_in_parts_has_the_loss_of_the_whole(head: str, tmp_path: Path) -> None:
    ours, _ = pair_to_train(head)
    other = copy.deepcopy(ours)
    whole = trained(ours, head, tmp_path, per_device_train_batch_size=6, max_steps=2)
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    # Each part has the mean of its labels, of which some rows have fewer.
    assert trained(other, head, tmp_path, **parts, max_steps=2) == pytest.approx(whole, rel=0.1)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("head", ["Model", *HEADS])
def test_numbers_of_parameters(head: str, tied: bool) -> None:
    ours, theirs = pair_to_train(head, tie_word_embeddings=tied)
    for model in (ours, theirs):
        model.base_model.layers[0].requires_grad_(False)
    for options in (
        {},
        {"exclude_embeddings": True},
        {"only_trainable": True},
        {"exclude_embeddings": True, "only_trainable": True},
    ):
        assert ours.num_parameters(**options) == theirs.num_parameters(**options)


@pytest.mark.parametrize("head", ["Model", *HEADS])
def test_outputs_are_rebuilt(head: str) -> None:
    ours, _ = pair_to_train(head)
    ids = ids_of(ours)
    labels = labels_of(head, ours, ids)
    given = {} if labels is None else {"labels": labels}
    out = ours(ids, output_hidden_states=True, output_attentions=True, **given)
    leaves, spec = pytree.tree_flatten(out)
    for again in (
        type(out)(dict(out)),
        type(out)(**out),
        copy.copy(out),
        accelerate.utils.send_to_device(out, "cpu"),
        accelerate.utils.convert_to_fp32(out),
        pytree.tree_unflatten(leaves, spec),
        pytree.tree_map(lambda leaf: leaf, out),
    ):
        assert type(again) is type(out)
        assert list(again) == list(out)
        for name in out:
            one, other = again[name], out[name]
            assert isinstance(one, type(other))
            if isinstance(other, tuple):
                assert len(one) == len(other) > 0
                assert all(torch.equal(left, right) for left, right in zip(one, other, strict=True))
            elif isinstance(other, Tensor):
                assert torch.equal(one, other)
            else:
                assert one is other

"""What scripts change in a model, its config, and generate on our own class: as on transformers' classes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_modeling import HEADS, ids_of, pair_of

from adept_fast import modeling
from adept_fast.checkpoint import demo_path
from adept_fast.config import ConfigError


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rows", [120, 64])
def test_embeddings_are_resized(rows: int, tied: bool) -> None:
    ours, theirs = pair_of("ForCausalLM", tie_word_embeddings=tied)
    ids = ids_of(ours) % 64
    before = ours(ids).logits[..., :64]
    for model in (ours, theirs):
        embeddings = model.resize_token_embeddings(rows, mean_resizing=False)
        assert embeddings is model.get_input_embeddings()
        assert model.config.vocab_size == rows
        assert model.get_output_embeddings().weight.shape == (rows, 36)
        assert (model.get_output_embeddings().weight is embeddings.weight) == tied
    torch.testing.assert_close(ours(ids).logits[..., :64], before)
    new = torch.tensor([[rows - 1, 1]])
    assert ours(new, labels=new).loss.isfinite()
    assert ours.generate(ids[:1], max_new_tokens=3, eos_token_id=None).shape == (1, 12)


@pytest.mark.parametrize("head", HEADS)
def test_embeddings_are_replaced(head: str) -> None:
    ours, theirs = pair_of(head)
    other = torch.nn.Embedding(99, 36)
    for model in (ours, theirs):
        model.set_input_embeddings(other)
        assert model.get_input_embeddings() is other
    assert (ours.get_output_embeddings() is None) == (theirs.get_output_embeddings() is None)
    ids = ids_of(ours)
    torch.testing.assert_close(ours(ids)[0], theirs(ids)[0], atol=1e-4, rtol=0)


def test_output_embeddings_are_replaced_and_tied() -> None:
    ours, _ = pair_of("ForCausalLM")
    ours.set_output_embeddings(torch.nn.Linear(36, 99, bias=False))
    assert ours.lm_head is ours.get_output_embeddings()
    tied, _ = pair_of("ForCausalLM", tie_word_embeddings=True)
    tied.lm_head.weight = torch.nn.Parameter(torch.zeros(99, 36))
    tied.tie_weights()
    assert tied.lm_head.weight is tied.model.embed_tokens.weight


def test_inputs_get_gradients_if_required() -> None:
    ours, _ = pair_of("ForCausalLM")
    ours.requires_grad_(False)
    ids = ids_of(ours)
    assert not ours(ids).logits.requires_grad
    ours.enable_input_require_grads()
    assert ours(ids).logits.requires_grad
    ours.disable_input_require_grads()
    assert not ours(ids).logits.requires_grad


def test_the_inputs_of_a_step_are_prepared() -> None:
    ours, theirs = pair_of("ForCausalLM")
    ids = ids_of(ours)
    given = {"attention_mask": torch.ones_like(ids), "cache_position": torch.arange(9)}
    prepared = ours.prepare_inputs_for_generation(ids, **given)
    assert set(prepared) == set(theirs.prepare_inputs_for_generation(ids, **given))
    assert torch.equal(prepared["input_ids"], ids)


class TestConfig:
    def test_a_directory_round_trip(self, tmp_path: Path) -> None:
        config = modeling.PersimmonConfig(vocab_size=77, eos_token_id=[3, 4], num_labels=5, pad_token_id=1)
        config.save_pretrained(tmp_path)
        for cls in (modeling.PersimmonConfig, transformers.PersimmonConfig):
            again = cls.from_pretrained(tmp_path)
            assert (again.vocab_size, again.eos_token_id, again.num_labels) == (77, [3, 4], 5)
            assert again.hidden_act == "relu2"

    def test_any_checkpoint(self) -> None:
        config, unused = modeling.PersimmonConfig.from_pretrained(
            "demo", hidden_dropout=0.5, a_name=1, return_unused_kwargs=True
        )
        assert (config.hidden_size, config.hidden_dropout, unused) == (256, 0.5, {"a_name": 1})
        with pytest.raises(TypeError, match="PersimmonConfig has no field a_name"):
            modeling.PersimmonConfig.from_pretrained("demo", a_name=1)

    @pytest.mark.parametrize("head", HEADS)
    def test_theirs_is_taken_as_it_is(self, head: str) -> None:
        _, theirs = pair_of(head, num_labels=4)
        cls = getattr(modeling, f"Persimmon{head}")
        model = cls(theirs.config)
        assert model.config is theirs.config
        assert model.load_state_dict(theirs.state_dict())
        ids = ids_of(model)
        torch.testing.assert_close(model.eval()(ids)[0], theirs(ids)[0], atol=1e-4, rtol=0)
        cache = modeling.KeyValueCache(theirs.config, max_batch_size=3, max_seq_len=9)
        assert model(ids, cache=cache)[0].shape == theirs(ids)[0].shape
        loaded = modeling.PersimmonModel.from_pretrained(
            "demo", config=transformers.PersimmonConfig.from_pretrained(demo_path()), hidden_dropout=0.25
        )
        assert loaded.config.hidden_dropout == 0.25

    def test_another_activation_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="hidden_act is 'gelu'; expected 'relu2'"):
            modeling.PersimmonConfig(hidden_act="gelu")
        with pytest.raises(ConfigError, match="hidden_act is 'gelu'; expected 'relu2'"):
            modeling.PersimmonModel(transformers.PersimmonConfig(hidden_act="gelu"))
        with pytest.raises(ConfigError, match="config is 5; expected a PersimmonConfig"):
            modeling.PersimmonModel(5)


class TestGenerate:
    """Greedy ids are transformers', on the runtime where it can decode them."""

    @pytest.mark.parametrize(
        "given",
        [
            {},
            {"attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])},
            {"repetition_penalty": 1.5, "output_scores": True, "return_dict_in_generate": True},
            {"generation_config": transformers.GenerationConfig(max_new_tokens=5, eos_token_id=[7, 8])},
            {"prompt_lookup_num_tokens": 3},
        ],
        ids=str,
    )
    def test_on_the_runtime(self, given: dict[str, Any]) -> None:
        ours, theirs = pair_of("ForCausalLM")
        ids = ids_of(ours, (1 if "prompt_lookup_num_tokens" in given else 2, 5))
        asked: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0} | given
        out, expected = ours.generate(ids, **asked), theirs.generate(ids, **asked)
        if "return_dict_in_generate" in given:
            torch.testing.assert_close(out.scores, expected.scores, atol=1e-4, rtol=0)
            out, expected = out.sequences, expected.sequences
        assert torch.equal(out, expected)

    @pytest.mark.parametrize("given", [{"num_beams": 3}, {"bad_words_ids": [[5]]}], ids=str)
    def test_elsewhere(self, given: dict[str, Any]) -> None:
        """transformers' own loop runs over our forward pass, and says so once."""
        ours, theirs = pair_of("ForCausalLM")
        ids = ids_of(ours, (2, 5))
        with pytest.warns(UserWarning, match="transformers' own generate runs, as the runtime does not do"):
            out = ours.generate(ids, max_new_tokens=6, **given)
        assert torch.equal(out, theirs.generate(ids, max_new_tokens=6, **given))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ours.generate(ids, max_new_tokens=2, **given)

    def test_after_a_cache_of_a_forward_pass(self) -> None:
        ours, theirs = pair_of("ForCausalLM")
        ids = ids_of(ours, (2, 5))
        with torch.no_grad():
            cache = ours(ids[:, :3]).cache
        with pytest.warns(UserWarning, match="does not do a cache that the caller made"):
            out = ours.generate(ids, past_key_values=cache, max_new_tokens=5, eos_token_id=None)
        assert torch.equal(out, theirs.generate(ids, max_new_tokens=5, eos_token_id=None))
        assert cache.get_seq_length() == 9

    def test_after_training_it_has_the_new_weights(self) -> None:
        ours, theirs = pair_of("ForCausalLM")
        ids = ids_of(ours, (1, 5))
        first = ours.generate(ids, max_new_tokens=8, eos_token_id=None)
        optimiser = torch.optim.SGD(ours.train().parameters(), lr=1.0)
        ours(ids, labels=ids).loss.backward()
        optimiser.step()
        theirs.load_state_dict(ours.eval().state_dict())
        again = ours.generate(ids, max_new_tokens=8, eos_token_id=None)
        assert not torch.equal(again, first)
        assert torch.equal(again, theirs.generate(ids, max_new_tokens=8, eos_token_id=None))

"""The cache of a forward pass: a static cache that grows, is cropped, and belongs to one batch."""

from __future__ import annotations

import pytest
import torch
import transformers
from test_modeling import LEFT, assert_close, assert_same, ids_of, pair_of

from adept_fast import modeling
from adept_fast.integrations.transformers.compatibility import CACHE_NAME


@pytest.mark.parametrize("padded", [False, True])
def test_attentions_of_cached_steps(padded: bool) -> None:
    ours, theirs = pair_of("ForCausalLM")
    theirs.set_attn_implementation("eager")
    ids = ids_of(ours)
    past, their_past = None, None
    for start, end in ((0, 4), (4, 5), (5, 8), (8, 9)):
        given = {"input_ids": ids[:, start:end], "output_attentions": True}
        if padded:
            given["attention_mask"] = LEFT[:, :end]
        with torch.no_grad():
            out = ours(**given, past_key_values=past)
            expected = theirs(**given, **{CACHE_NAME: their_past})
        assert_same(out, expected)
        assert out.attentions[0].shape == (3, 3, end - start, end)
        past, their_past = out.cache, expected[CACHE_NAME]


def test_one_that_is_given_grows() -> None:
    ours, theirs = pair_of("Model")
    cache = modeling.KeyValueCache(ours.config, max_batch_size=2, max_seq_len=1)
    ids = ids_of(ours, (2, 30))
    with torch.no_grad():
        parts = [ours(part, past_key_values=cache).last_hidden_state for part in ids.split(4, 1)]
    assert_close(torch.cat(parts, 1), theirs(ids).last_hidden_state)
    assert len(cache) == 2


def test_a_crop_takes_tokens_back() -> None:
    ours, _ = pair_of("Model")
    ids = ids_of(ours, (2, 8))
    cache = ours(ids[:, :6]).past_key_values
    cache.crop(4)
    out = ours(ids[:, 4:], cache=cache)
    assert_close(out.last_hidden_state, ours(ids).last_hidden_state[:, 4:])
    cache.crop(-3)
    assert cache.get_seq_length() == 5
    with pytest.raises(ValueError, match="length is 6; expected an integer from -5 to 5"):
        cache.crop(6)


def test_another_batch_is_refused() -> None:
    ours, _ = pair_of("Model")
    cache = ours(ids_of(ours, (2, 3))).past_key_values
    with pytest.raises(ValueError, match="the batch has 1 rows; expected 2 as the cache"):
        ours(ids_of(ours, (1, 3)), past_key_values=cache)
    assert cache.get_seq_length() == 3


@pytest.mark.parametrize("padded", [False, True])
def test_a_cache_of_theirs_is_taken(padded: bool) -> None:
    ours, theirs = pair_of("ForCausalLM")
    ids = ids_of(ours)
    given, whole = ({"attention_mask": LEFT[:, :4]}, {"attention_mask": LEFT}) if padded else ({}, {})
    for cache in (
        transformers.DynamicCache(config=theirs.config),
        transformers.StaticCache(config=theirs.config, max_cache_len=20),
    ):
        with torch.no_grad():
            ours(ids[:, :4], cache=cache, cache_position=torch.arange(4), **given)
            out = ours(ids[:, 4:], past_key_values=cache, cache_position=torch.arange(4, 9), **whole)
            expected = theirs(ids, **whole).logits[:, 4:]
        assert out.cache is cache
        assert cache.get_seq_length() == 9
        assert_close(out.logits, expected)


def test_what_is_no_cache_is_refused() -> None:
    ours, _ = pair_of("ForCausalLM")
    with pytest.raises(TypeError, match="the cache is a tuple; expected a KeyValueCache, or a Cache of"):
        ours(ids_of(ours), cache=())


def test_a_cache_under_both_names_is_refused() -> None:
    ours, _ = pair_of("ForCausalLM")
    cache = ours(ids_of(ours, (2, 3))).cache
    with pytest.raises(ValueError, match="cache and past_key_values are both given"):
        ours(ids_of(ours, (2, 3)), cache=cache, past_key_values=cache)


def test_a_trainer_leaves_the_cache_out_of_its_predictions() -> None:
    ours, _ = pair_of("Model")
    assert {"cache", "past_key_values"} == set(ours.config.keys_to_ignore_at_inference)
    assert "keys_to_ignore_at_inference" not in ours.config.to_dict()

"""The cache of ``generate``: returned under the installed release's name, and continued from."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerated_models import batch, left_padded, long_model
from torch import Tensor

from adept_fast.integrations.transformers import accelerate
from adept_fast.integrations.transformers.compatibility import (
    CACHE_NAME,
    CACHE_NAMES,
    require_supported,
    with_both_names,
    with_installed_name,
)
from adept_fast.model import Persimmon, Segment

DETAILS = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False}


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    return long_model(), accelerate(long_model())


@pytest.fixture
def tokens_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many tokens of each sequence every prefill of the runtime reads."""
    read: list[int] = []
    prefill = Persimmon.prefill_chunk

    def counted(self: Persimmon, segments: list[Segment], *args: Any) -> Tensor:
        read.extend(len(segment.ids) for segment in segments)
        return prefill(self, segments, *args)

    monkeypatch.setattr(Persimmon, "prefill_chunk", counted)
    return read


def generate(model: Any, ids: Tensor, **settings: Any) -> Any:
    return model.generate(ids, **DETAILS | {"max_new_tokens": 6, "eos_token_id": None} | settings)


def assert_same_cache(found: Any, expected: Any, mask: Tensor) -> None:
    """Keys and values, but where ``mask`` [rows, columns] says that there is padding."""
    assert found.get_seq_length() == expected.get_seq_length()
    seen = mask[:, : found.get_seq_length()].bool()
    for ours, theirs in zip(found.layers, expected.layers, strict=True):
        for name in ("keys", "values"):
            one, other = (getattr(layer, name).transpose(1, 2)[seen] for layer in (ours, theirs))
            torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def follow(mask: Tensor, columns: int) -> Tensor:
    return torch.cat((mask, mask.new_ones(len(mask), columns)), 1)


@pytest.mark.parametrize("name", CACHE_NAMES)
@pytest.mark.parametrize("lengths", [[4], [1], [7, 7], [3, 9, 1]], ids=str)
def test_a_second_call_reads_only_what_follows(
    pair: tuple[Any, Any], tokens_read: list[int], lengths: list[int], name: str
) -> None:
    theirs, ours = pair
    prompts = left_padded(lengths)
    mask = prompts["attention_mask"]
    found, expected = (generate(model, prompts["input_ids"], attention_mask=mask) for model in (ours, theirs))
    assert found.cache is found.past_key_values is found[name]
    assert CACHE_NAME in found
    mask = follow(mask, 6)
    assert_same_cache(found[CACHE_NAME], expected[CACHE_NAME], mask)
    more, mask = torch.cat((found.sequences, batch(len(lengths), 3, seed=5)), 1), follow(mask, 3)
    tokens_read.clear()
    again = generate(ours, more, attention_mask=mask, **{name: found[name]})
    assert tokens_read == [4] * len(lengths)  # the last token of the first call, and three
    whole = generate(theirs, more, attention_mask=mask)
    assert torch.equal(again.sequences, whole.sequences)
    torch.testing.assert_close(torch.stack(again.logits), torch.stack(whole.logits), atol=1e-4, rtol=0)
    assert again.cache is found.cache  # which has grown, as theirs does
    assert_same_cache(again.cache, whole[CACHE_NAME], follow(mask, 6))


def test_without_a_dict_the_cache_grows_too(pair: tuple[Any, Any], tokens_read: list[int]) -> None:
    theirs, ours = pair
    ids = batch(1, 5)
    first = generate(ours, ids)
    tokens_read.clear()
    second = ours.generate(
        first.sequences, do_sample=False, max_new_tokens=4, eos_token_id=None, cache=first.cache
    )
    assert tokens_read == [1]
    third = ours.generate(second, do_sample=False, max_new_tokens=4, eos_token_id=None, cache=first.cache)
    assert tokens_read == [1, 1]
    assert torch.equal(third, theirs.generate(ids, do_sample=False, max_new_tokens=14, eos_token_id=None))


def test_one_prompt_for_many_questions(pair: tuple[Any, Any], tokens_read: list[int]) -> None:
    """Copies of a cache go on independently."""
    theirs, ours = pair
    read = generate(ours, batch(1, 8), max_new_tokens=1)
    tokens_read.clear()
    for seed in (1, 2, 3):
        question = torch.cat((batch(1, 8), batch(1, 2, seed=seed)), 1)
        found = generate(ours, question, cache=copy.deepcopy(read.cache))
        assert torch.equal(found.sequences, generate(theirs, question).sequences)
    assert tokens_read == [2, 2, 2]


def test_texts_that_end_before_others(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    prompts = batch(3, 4, seed=2)
    plain = theirs.generate(prompts, do_sample=False, max_new_tokens=12, eos_token_id=None)
    settings = {"eos_token_id": int(plain[0, 6]), "pad_token_id": 1, "max_new_tokens": 12}
    found, expected = (generate(model, prompts, **settings) for model in (ours, theirs))
    assert torch.equal(found.sequences, expected.sequences)
    assert (found.sequences == 1).any()
    assert_same_cache(found.cache, expected[CACHE_NAME], torch.ones_like(found.sequences))


def test_guesses_leave_no_trace_in_it(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    ids = batch(1, 3).repeat(1, 6)
    found, expected = (generate(model, ids, max_new_tokens=9) for model in (ours, theirs))
    guessed = generate(ours, ids, max_new_tokens=9, prompt_lookup_num_tokens=4)
    assert torch.equal(guessed.sequences, expected.sequences)
    for one in (found, guessed):
        assert_same_cache(one.cache, expected[CACHE_NAME], torch.ones_like(one.sequences))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_it_has_the_dtype_of_the_model(dtype: torch.dtype, tokens_read: list[int]) -> None:
    ours, theirs = accelerate(long_model().to(dtype)), long_model().to(dtype)
    first = generate(ours, batch(2, 5))
    assert {layer.keys.dtype for layer in first.cache.layers} == {dtype}
    tokens_read.clear()
    second = generate(ours, first.sequences, cache=copy.deepcopy(first.cache))
    assert tokens_read == [1, 1]
    # transformers' own forward takes it, and sees what its own cache would have shown it.
    last = first.sequences[:, -1:]
    their_cache = theirs(first.sequences[:, :-1])[CACHE_NAME]
    with torch.no_grad():
        through_ours = theirs(last, **{CACHE_NAME: first.cache}).logits
        through_theirs = theirs(last, **{CACHE_NAME: their_cache}).logits
    torch.testing.assert_close(through_ours, through_theirs, atol=0.1, rtol=0)
    torch.testing.assert_close(second.logits[0], through_theirs[:, -1].float(), atol=0.1, rtol=0)


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_forward_takes_both_names(pair: tuple[Any, Any], name: str) -> None:
    theirs, ours = pair
    ids = batch(2, 7)
    with torch.no_grad():
        first = ours(ids[:, :4])
        second = ours(ids[:, 4:], **{name: first[name]})
        expected = theirs(ids).logits[:, 4:]
    torch.testing.assert_close(second.logits, expected, atol=1e-4, rtol=0)
    assert second.cache is second.past_key_values is first.cache


def test_no_cache_where_none_is_wanted(pair: tuple[Any, Any]) -> None:
    for model in pair:
        assert with_both_names(generate(model, batch(1, 4), use_cache=False)).cache is None


@pytest.mark.filterwarnings("default:transformers' own generate runs")
def test_a_cache_of_other_prompts_is_transformers_business(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    cache = generate(theirs, batch(1, 6))[CACHE_NAME]
    with pytest.raises((ValueError, RuntimeError, IndexError)):
        generate(theirs, batch(2, 14), **{CACHE_NAME: cache})
    cache = generate(ours, batch(1, 6))[CACHE_NAME]
    with (
        pytest.warns(UserWarning, match="a cache of 1 rows for 2 prompts"),
        pytest.raises((ValueError, RuntimeError, IndexError), match=r"(?i)size|shape|index"),
    ):
        generate(ours, batch(2, 14), cache=cache)


@pytest.mark.filterwarnings("default:transformers' own generate runs")
def test_what_is_handed_over_has_drawn_nothing() -> None:
    """The first prompt's tokens all stand behind the cache, which the runtime does not serve."""
    found = []
    for model in (long_model(), accelerate(long_model())):
        first = generate(model, batch(2, 4))
        ids = torch.cat((first.sequences, batch(2, 6, seed=3)), 1)
        mask = torch.ones_like(ids)
        mask[0, :12] = 0
        torch.manual_seed(7)
        cache = with_installed_name({"cache": first[CACHE_NAME]})
        found.append(generate(model, ids, attention_mask=mask, do_sample=True, **cache).sequences)
    assert torch.equal(*found)


def test_two_caches_are_refused(pair: tuple[Any, Any]) -> None:
    _, ours = pair
    cache = generate(ours, batch(1, 4)).cache
    with pytest.raises(ValueError, match="cache and past_key_values are both given"):
        generate(ours, batch(1, 12), cache=cache, past_key_values=cache)


def test_arguments_without_a_cache_stay_as_they_are() -> None:
    assert with_installed_name({"use_cache": True, "past_key_values": None}) == {"use_cache": True}
    assert with_installed_name({"cache": 3, "past_key_values": None}) == {CACHE_NAME: 3}
    assert with_both_names((1, 2)) == (1, 2)


def test_older_releases_are_refused() -> None:
    for version in ("5.2.0", "5.24.0.dev0", "6.0"):
        require_supported(version)
    for version in ("5.1.0", "4.57.6"):
        with pytest.raises(ImportError, match=f"transformers {version} is installed; expected 5.2 or newer"):
            require_supported(version)

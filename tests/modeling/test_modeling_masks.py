"""Masks of four dimensions, labels that are shifted already, positions of a cache: as in transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from test_modeling import LEFT, RIGHT, assert_close, assert_same, ids_of, pair_of
from torch import Tensor

from adept_fast.integrations.transformers.compatibility import CACHE_NAME

SMALL = {"vocab_size": 61, "hidden_size": 32, "num_attention_heads": 4}


def visible_keys(kind: str) -> Tensor:
    """bool [3 or 1, 4 or 1, 9, 9]; each query sees itself at least."""
    causal, own = torch.ones(9, 9).tril().bool(), torch.eye(9).bool()
    if kind == "padded":
        return (causal & LEFT[:, None, None].bool()) | own
    if kind == "of all rows":
        return causal[None, None]
    if kind == "not causal":
        return torch.ones(3, 1, 9, 9).bool()
    generator = torch.Generator().manual_seed(6)
    return (torch.rand(3, 4, 9, 9, generator=generator) < 0.6) | own  # of each head


def mask_of(kind: str, added: bool) -> Tensor:
    visible = visible_keys(kind)
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(visible.shape).masked_fill(~visible, lowest) if added else visible


KINDS = ("padded", "of all rows", "not causal", "of each head")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("added", [False, True], ids=["bool", "added"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_of_four_dimensions(kind: str, added: bool, attention: str) -> None:
    ours, theirs = pair_of("ForCausalLM", **SMALL)
    for model in (ours, theirs):
        model.set_attn_implementation(attention)
    given = {"input_ids": ids_of(ours), "attention_mask": mask_of(kind, added)}
    # Their eager attention adds any mask, so one of bools is taken as numbers there.
    expected = given | {"attention_mask": mask_of(kind, True)}
    with torch.no_grad():
        assert_same(ours(**given), theirs(**expected))
    assert (
        ours(**given).logits - ours(given["input_ids"]).logits
    ).abs().max() > 0.01 or kind == "of all rows"


@pytest.mark.parametrize("added", [False, True], ids=["bool", "added"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_of_four_dimensions_with_a_past(kind: str, added: bool) -> None:
    ours, theirs = pair_of("ForCausalLM", **SMALL)
    ids, mask = ids_of(ours), mask_of(kind, added)
    past, their_past = None, None
    for start, end in ((0, 4), (4, 5), (5, 9)):
        given = {"input_ids": ids[:, start:end], "attention_mask": mask[:, :, start:end, :end]}
        with torch.no_grad():
            out = ours(**given, past_key_values=past)
            expected = theirs(**given, **{CACHE_NAME: their_past})
        assert_same(out, expected)
        past, their_past = out.cache, expected[CACHE_NAME]


@pytest.mark.parametrize("items", [None, 7])
def test_labels_that_are_shifted_already(items: int | None) -> None:
    ours, theirs = pair_of("ForCausalLM", **SMALL)
    ids = ids_of(ours)
    shifted = ids.roll(-1, 1)
    shifted[:, -1] = shifted[1, 3] = -100
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": RIGHT, "num_items_in_batch": items}
    out = ours(**given, shift_labels=shifted)
    # Theirs has a loss only if labels are given too.
    assert_same(out, theirs(**given, labels=ids, shift_labels=shifted))
    as_labels = torch.cat((torch.full((3, 1), -100), shifted[:, :-1]), 1)
    assert_close(ours(**given, labels=as_labels).loss, out.loss, 1e-5)


def test_a_name_that_is_no_argument_is_refused() -> None:
    ours, _ = pair_of("ForCausalLM", **SMALL)
    with pytest.raises(TypeError, match="forward has no argument shift_label$"):
        ours(ids_of(ours), shift_label=None)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@pytest.mark.parametrize("kind", ["ours", "dynamic", "static"])
def test_steps_with_positions_of_the_cache(kind: str, name: str) -> None:
    ours, theirs = pair_of("ForCausalLM", **SMALL)
    ids, cache = ids_of(ours), None
    if kind != "ours":
        cache = (
            transformers.DynamicCache(config=theirs.config)
            if kind == "dynamic"
            else transformers.StaticCache(config=theirs.config, max_cache_len=12)
        )
    parts = []
    with torch.no_grad():
        for start, end in ((0, 4), (4, 5), (5, 9)):
            positions = torch.arange(start, end)
            given = {"attention_mask": LEFT[:, :end], "cache_position": positions, "use_cache": True}
            out = ours(ids[:, start:end], **given, **{name: cache})
            cache = out.cache
            parts.append(out.logits)
        assert_close(torch.cat(parts, 1)[LEFT.bool()], theirs(ids, attention_mask=LEFT).logits[LEFT.bool()])

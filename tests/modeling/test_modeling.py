"""The classes of adept_fast.modeling against transformers' of the same names, field by field."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from adept_fast import modeling
from adept_fast.integrations.transformers.compatibility import CACHE_NAME

CLOSE = 1e-4  # of every field in float32
CLOSE_LOSS = 1e-5

# Sizes that are odd wherever they can be, all settings of the architecture, and every head's settings.
CONFIGS: dict[str, dict[str, Any]] = {
    "like the 8B": {"hidden_size": 64, "num_attention_heads": 2},
    "one layer": {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 1},
    "five layers": {"num_hidden_layers": 5, "hidden_size": 40, "num_attention_heads": 5},
    "no qk_layernorm": {"qk_layernorm": False, "hidden_size": 48, "num_attention_heads": 3},
    "all of a head turns": {"partial_rotary_factor": 1.0, "hidden_size": 30, "num_attention_heads": 3},
    "a quarter of a head turns": {"partial_rotary_factor": 0.25, "hidden_size": 80, "num_attention_heads": 2},
    "odd head_dim": {"partial_rotary_factor": 0.4, "hidden_size": 33, "num_attention_heads": 3},
    "tied": {"tie_word_embeddings": True, "hidden_size": 32, "num_attention_heads": 4},
    "tied, no qk_layernorm": {
        "tie_word_embeddings": True,
        "qk_layernorm": False,
        "hidden_size": 24,
        "num_attention_heads": 2,
    },
    "narrow MLP, coarse eps": {"intermediate_size": 7, "layer_norm_eps": 1e-2, "rope_theta": 123.0},
    "dropout that eval leaves out": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
    "one label": {"num_labels": 1, "vocab_size": 5},
}
HEADS = ("Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification")
LEFT = torch.tensor([[1] * 9, [0] * 4 + [1] * 5, [0] * 8 + [1]])
RIGHT = LEFT.flip(1)
BOTH = LEFT & RIGHT.roll(1, 0)
PADDINGS = {"none": None, "no zero": torch.ones(3, 9).long(), "left": LEFT, "right": RIGHT, "both": BOTH}


def values_of(**changes: Any) -> dict[str, Any]:
    values = {
        "vocab_size": 99,
        "hidden_size": 36,
        "intermediate_size": 53,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": 32,
        "rope_theta": 25000.0,
        "num_labels": 3,
        "pad_token_id": 0,
    }
    return values | changes


def pair_of(head: str, **changes: Any) -> tuple[Any, Any]:
    """Ours and theirs, with the same random weights, in eval mode."""
    values = values_of(**changes)
    ours = getattr(modeling, f"Persimmon{head}")(modeling.PersimmonConfig(**values)).eval()
    rope = {
        "rope_type": "default",
        "rope_theta": values["rope_theta"],
        "partial_rotary_factor": values.get("partial_rotary_factor", 0.5),
    }
    config = transformers.PersimmonConfig(**values, rope_parameters=rope)
    theirs = getattr(transformers, f"Persimmon{head}")(config).eval()
    generator = torch.Generator().manual_seed(11)
    for name, parameter in ours.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_gain = name.endswith("norm.weight")
        parameter.data = 1 + 0.2 * noise if is_gain else (0.3 * noise if parameter.dim() > 1 else 0.1 * noise)
    ours.tie_weights()
    assert theirs.load_state_dict(ours.state_dict(), strict=True)
    theirs.tie_weights()
    return ours, theirs


@pytest.fixture(scope="module", params=list(CONFIGS))
def pairs(request: pytest.FixtureRequest) -> dict[str, tuple[Any, Any]]:
    return {head: pair_of(head, **CONFIGS[request.param]) for head in HEADS}


def ids_of(ours: Any, shape: tuple[int, int] = (3, 9), seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, ours.config.vocab_size, shape, generator=generator)


def labels_of(head: str, ours: Any, ids: Tensor) -> Tensor | None:
    if head == "Model":
        return None
    generator = torch.Generator().manual_seed(1)
    labels = ids.clone() if head == "ForCausalLM" else ids % ours.config.num_labels
    labels[0, :3] = -100
    if head != "ForSequenceClassification":
        return labels
    if ours.config.num_labels == 1:
        return torch.randn(len(ids), generator=generator)
    return labels[:, -1]


def assert_same(ours: Any, theirs: Any) -> None:
    """The same fields in the same order with the same numbers, by key, attribute and place."""
    assert list(ours.keys()) == ["cache" if name == CACHE_NAME else name for name in theirs]
    for place, (name, expected) in enumerate(theirs.items()):
        found = ours[name]
        if name == CACHE_NAME:
            assert found is ours.cache is ours.past_key_values is ours["cache"] is ours["past_key_values"]
            assert found.get_seq_length() == expected.get_seq_length()
            continue
        assert found is ours[place]
        assert found is getattr(ours, name)
        close = CLOSE_LOSS if name == "loss" else CLOSE
        assert_close(found, expected, close)


def assert_close(found: Any, expected: Any, close: float = CLOSE) -> None:
    if isinstance(expected, tuple):
        assert isinstance(found, tuple)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other, close)
    else:
        torch.testing.assert_close(found, expected, atol=close, rtol=1e-5)


def padded(ids: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    return {"input_ids": ids} if mask is None else {"input_ids": ids * mask, "attention_mask": mask}


def test_there_are_at_least_ten_configurations() -> None:
    assert len(CONFIGS) >= 10


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("padding", list(PADDINGS))
def test_every_field(pairs: dict[str, tuple[Any, Any]], head: str, padding: str) -> None:
    ours, theirs = pairs[head]
    ids = ids_of(ours)
    given = padded(ids, PADDINGS[padding]) | {"output_hidden_states": True}
    labels = labels_of(head, ours, ids)
    given |= {} if labels is None else {"labels": labels}
    ours.config.problem_type = theirs.config.problem_type = None
    with torch.no_grad():
        expected = theirs(**given)
        assert_same(ours(**given), expected)
        assert expected[0].std() > 0.1 if labels is None else expected["logits"].std() > 0.1
        as_tuple = ours(**given, return_dict=False)
        assert isinstance(as_tuple, tuple)
        assert len(as_tuple) == len(theirs(**given, return_dict=False))
        assert ours.config.problem_type == theirs.config.problem_type


@pytest.mark.parametrize("padding", list(PADDINGS))
def test_attentions(pairs: dict[str, tuple[Any, Any]], padding: str) -> None:
    for head in HEADS:
        ours, theirs = pairs[head]
        theirs.set_attn_implementation("eager")
        given = padded(ids_of(ours), PADDINGS[padding])
        with torch.no_grad():
            expected = theirs(**given, output_attentions=True)
            assert_same(ours(**given, output_attentions=True), expected)
        theirs.set_attn_implementation("sdpa")
    assert expected["attentions"][0].shape[-2:] == (9, 9)


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("head", HEADS[:3])
def test_embeddings_instead_of_ids(pairs: dict[str, tuple[Any, Any]], head: str, padding: str) -> None:
    ours, theirs = pairs[head]
    mask = PADDINGS[padding]
    given = {} if mask is None else {"attention_mask": mask}
    embeds = torch.randn(3, 9, ours.config.hidden_size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that padding does not show in embeddings is tested below
        assert_same(ours(inputs_embeds=embeds, **given), theirs(inputs_embeds=embeds, **given))
        same = ours(inputs_embeds=ours.get_input_embeddings()(ids_of(ours)))
    if head != "ForSequenceClassification":
        assert_close(same[0], ours(ids_of(ours))[0], 0)


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("steps", [(9,), (4, 5), (1,) * 9, (3, 1, 1, 4)])
def test_cached_steps(pairs: dict[str, tuple[Any, Any]], steps: tuple[int, ...], padding: str) -> None:
    ours, theirs = pairs["ForCausalLM"]
    mask, ids = PADDINGS[padding], ids_of(ours)
    whole = ours(**padded(ids, mask), use_cache=False)
    assert "cache" not in whole
    assert "past_key_values" not in whole
    assert whole.cache is whole.past_key_values is None
    past, their_past, start, parts = None, None, 0, []
    with torch.no_grad():
        for step in steps:
            end = start + step
            given: dict[str, Any] = {"input_ids": padded(ids, mask)["input_ids"][:, start:end]}
            if mask is not None:
                given["attention_mask"] = mask[:, :end]
            out = ours(**given, past_key_values=past, output_hidden_states=True)
            expected = theirs(**given, **{CACHE_NAME: their_past}, output_hidden_states=True)
            assert_same(out, expected)
            past, their_past, start = out.past_key_values, expected[CACHE_NAME], end
            parts.append(out.logits)
    # What stands at a padded place differs between a whole and its parts, in theirs as well.
    seen = torch.ones(3, 9, dtype=torch.bool) if mask is None else mask.bool()
    assert_close(torch.cat(parts, 1)[seen], whole.logits[seen])
    assert past.get_seq_length() == 9


def test_position_ids(pairs: dict[str, tuple[Any, Any]]) -> None:
    ours, theirs = pairs["ForCausalLM"]
    ids = ids_of(ours)
    aware = (LEFT.cumsum(-1) - 1).clamp(min=0)
    apart = torch.tensor([[0, 1, 2, 3, 7, 8, 0, 1, 2]])
    packed = torch.tensor(
        [[0, 1, 2, 3, 0, 1, 0, 1, 2], [5, 6, 7, 8, 9, 10, 11, 12, 13], [0, 0, 0, 1, 1, 1, 2, 3, 4]]
    )
    with torch.no_grad():
        for given in (
            {"position_ids": aware, "attention_mask": LEFT},
            {"position_ids": apart},
            {"position_ids": apart, "use_cache": False},
            {"position_ids": packed, "use_cache": False},
            {"position_ids": torch.arange(9)[None] + 1000},  # past the context
        ):
            assert_same(ours(ids, **given), theirs(ids, **given))


def test_left_padding_changes_no_logits_where_positions_know_of_it() -> None:
    ours, _ = pair_of("ForCausalLM")
    ids = ids_of(ours, (1, 5))
    row = torch.cat((torch.zeros(1, 4, dtype=torch.int64), ids), 1)
    mask = LEFT[1:2]
    out = ours(row, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
    assert_close(out.logits[:, 4:], ours(ids).logits)


def test_logits_to_keep(pairs: dict[str, tuple[Any, Any]]) -> None:
    ours, theirs = pairs["ForCausalLM"]
    ids = ids_of(ours)
    every = ours(ids).logits
    for kept, expected in (
        (0, every),
        (1, every[:, -1:]),
        (4, every[:, -4:]),
        (torch.tensor([0, 5, 5, 8]), every[:, [0, 5, 5, 8]]),
        (torch.tensor([[0, 1], [8, 2], [3, 3]]), every[torch.arange(3)[:, None], [[0, 1], [8, 2], [3, 3]]]),
        (LEFT.bool(), every[LEFT.bool()]),
    ):
        assert_close(ours(ids, logits_to_keep=kept).logits, expected)
        if isinstance(kept, int) or kept.dim() == 1:
            assert_close(ours(ids, logits_to_keep=kept).logits, theirs(ids, logits_to_keep=kept).logits)


@pytest.mark.parametrize("items", [None, 7, torch.tensor(13)])
def test_next_token_loss_with_items_in_batch(items: Any) -> None:
    ours, theirs = pair_of("ForCausalLM")
    ids = ids_of(ours)
    labels = labels_of("ForCausalLM", ours, ids)
    found = ours(ids, labels=labels, num_items_in_batch=items)
    assert_same(found, theirs(ids, labels=labels, num_items_in_batch=items))
    logprobs = found.logits.double().log_softmax(-1)[:, :-1]
    picked = [
        logprobs[row, at, labels[row, at + 1]]
        for row in range(3)
        for at in range(8)
        if labels[row, at + 1] >= 0
    ]
    torch.testing.assert_close(
        found.loss.double(), -sum(picked) / (len(picked) if items is None else int(items)), atol=1e-5, rtol=0
    )


def label_kinds() -> dict[str, tuple[int, str | None, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return {
        "single, found": (3, None, torch.tensor([0, 2, 1])),
        "single, one ignored": (3, None, torch.tensor([0, -100, 1])),
        "multi, found": (3, None, torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0]])),
        "regression, found": (1, None, torch.randn(3, generator=generator)),
        "regression of a column": (1, "regression", torch.randn(3, 1, generator=generator)),
        "regression of several": (3, "regression", torch.randn(3, 3, generator=generator)),
        "single, said": (2, "single_label_classification", torch.tensor([[1], [0], [1]])),
        "multi, said": (2, "multi_label_classification", torch.tensor([[1.0, 1], [0, 1], [0, 0]])),
    }


@pytest.mark.parametrize("kind", list(label_kinds()))
def test_losses_of_a_sequence(kind: str) -> None:
    num_labels, problem_type, labels = label_kinds()[kind]
    ours, theirs = pair_of("ForSequenceClassification", num_labels=num_labels, problem_type=problem_type)
    ids = ids_of(ours) * RIGHT
    assert_same(ours(ids, labels=labels), theirs(ids, labels=labels))
    assert ours.config.problem_type == theirs.config.problem_type is not None


def test_a_sequence_ends_with_its_last_token_that_is_no_padding() -> None:
    ours, theirs = pair_of("ForSequenceClassification")
    ids = ids_of(ours, (4, 9))
    ids[1, 5:] = 0
    ids[2, :3] = 0
    ids[3] = 0
    assert_same(ours(ids), theirs(ids))
    ours.config.pad_token_id = theirs.config.pad_token_id = None
    assert_same(ours(ids[1:2]), theirs(ids[1:2]))
    with pytest.raises(ValueError, match="pad_token_id is None and the batch has 4"):
        ours(ids)


def test_a_warning_says_that_embeddings_show_no_padding() -> None:
    ours, _ = pair_of("ForSequenceClassification")
    with pytest.warns(UserWarning, match="the last position of each sequence is classified"):
        ours(inputs_embeds=torch.zeros(2, 3, 36))


def test_fields_that_are_not_there() -> None:
    ours, _ = pair_of("ForCausalLM")
    out = ours(ids_of(ours), use_cache=False)
    assert list(out) == ["logits"]
    assert out.loss is None
    assert out.attentions is None
    assert out.to_tuple() == (out.logits,)
    assert out[:1] == (out.logits,)
    with pytest.raises(AttributeError, match="has no field logit;"):
        _ = out.logit
    with pytest.raises(KeyError):
        _ = out["loss"]
    out.loss = torch.zeros(())
    assert out["loss"] is out.loss


def test_the_configs_defaults_are_used() -> None:
    ours, theirs = pair_of("Model", use_cache=False, output_hidden_states=True)
    assert_same(ours(ids_of(ours)), theirs(ids_of(ours)))
    ours.config.return_dict = False
    assert isinstance(ours(ids_of(ours)), tuple)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "input_ids and inputs_embeds: neither given; expected one of them"),
        (
            {"input_ids": torch.ones(1, 2).long(), "inputs_embeds": torch.ones(1, 2, 36)},
            "input_ids and inputs_embeds: both given; expected one of them",
        ),
        ({"input_ids": torch.ones(2).long()}, r"input_ids has shape \[2\]; expected \[batch, sequence\]"),
        ({"inputs_embeds": torch.ones(1, 2, 35)}, r"inputs_embeds has shape \[1, 2, 35\]"),
        (
            {"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.ones(2, 4)},
            r"attention_mask has shape \[2, 4\]; expected \[2, 3\]",
        ),
        (
            {"input_ids": torch.ones(2, 3).long(), "position_ids": torch.ones(3, 3).long()},
            r"position_ids has shape \[3, 3\]; expected \[2, 3\] or \[1, 3\]",
        ),
    ],
)
def test_contradictions_are_named(given: dict[str, Tensor], sentence: str) -> None:
    ours, _ = pair_of("Model")
    with pytest.raises(ValueError, match=sentence):
        ours(**given)


def test_labels_of_another_shape_than_the_logits_are_named() -> None:
    ours, _ = pair_of("ForCausalLM")
    ids = ids_of(ours)
    with pytest.raises(ValueError, match=r"labels has shape \[3, 9\]; expected \[3, 2\]"):
        ours(ids, labels=ids, logits_to_keep=2)

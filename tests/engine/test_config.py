"""PersimmonConfig against transformers' class of the same name."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from transformers import PersimmonConfig as TheirConfig
from transformers import PersimmonForCausalLM

from adept_fast import ConfigError, PersimmonConfig

SPELLINGS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "top level": {"rope_theta": 25000.0, "partial_rotary_factor": 0.25},
    "theta alone": {"rope_theta": 25000.0},
    "factor alone": {"partial_rotary_factor": 1.0},
    "nested": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 25000.0, "partial_rotary_factor": 0.25}
    },
    "nested without factor": {"rope_parameters": {"rope_type": "default", "rope_theta": 25000.0}},
    "both, and they differ": {
        "rope_theta": 1.0,
        "partial_rotary_factor": 1.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.75},
    },
    "nested theta, factor at the top": {
        "partial_rotary_factor": 0.75,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    },
}


def test_defaults_are_theirs() -> None:
    ours, theirs = PersimmonConfig(), TheirConfig()
    for field in dataclasses.fields(PersimmonConfig):
        if field.name not in ("rope_theta", "partial_rotary_factor"):
            assert getattr(ours, field.name) == getattr(theirs, field.name), field.name
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.partial_rotary_factor == theirs.rope_parameters["partial_rotary_factor"]


@pytest.mark.parametrize("spelling", list(SPELLINGS))
def test_rotary_settings_are_read_as_they_read_them(spelling: str) -> None:
    # They write into what they are given.
    theirs = TheirConfig(**{k: dict(v) if isinstance(v, dict) else v for k, v in SPELLINGS[spelling].items()})
    ours = PersimmonConfig.from_dict(SPELLINGS[spelling])
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.partial_rotary_factor == theirs.rope_parameters["partial_rotary_factor"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qk_layernorm": False},
        {"tie_word_embeddings": True},
        {"rope_theta": 25000.0, "eos_token_id": None},
    ],
)
def test_what_is_written_is_read_back_by_both(changes: dict[str, Any]) -> None:
    small = {
        "vocab_size": 100,
        "hidden_size": 48,
        "intermediate_size": 70,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": 40,
        "layer_norm_eps": 1e-4,
    }
    config = PersimmonConfig(**small, **changes)
    assert PersimmonConfig.from_dict(config.to_dict()) == config
    assert PersimmonConfig.from_dict(TheirConfig.from_dict(config.to_dict()).to_dict()) == config
    with torch.device("meta"):
        model = PersimmonForCausalLM(TheirConfig.from_dict(config.to_dict()))
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    assert config.tensor_shapes() == state
    assert config.num_parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], "a list; expected a JSON object"),
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; expected 'relu2'"),
        ({"hidden_size": 100, "num_attention_heads": 3}, "100 is not a multiple of num_attention_heads 3"),
        ({"hidden_size": "4096"}, "hidden_size is '4096'; expected an integer"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"vocab_size": 2**31}, "vocab_size is 2147483648"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000; expected an integer from 1 to 4096"),
        ({"layer_norm_eps": 0}, "layer_norm_eps is 0"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"),
        ({"rope_theta": float("inf")}, "rope_theta is inf"),
        ({"partial_rotary_factor": 1.5}, r"partial_rotary_factor is 1.5; expected \(0, 1\]"),
        ({"partial_rotary_factor": 0.01}, "rotates 0 dimensions"),
        (
            {"hidden_size": 70, "num_attention_heads": 2, "partial_rotary_factor": 1.0},
            "rotates 35 dimensions",
        ),
        ({"qk_layernorm": "yes"}, "qk_layernorm is 'yes'; expected true or false"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}},
            "rope_type 'yarn'; expected 'default'",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type 'linear'"),
        ({"rope_parameters": [1]}, "rope_parameters is"),
        ({"bos_token_id": 1.5}, "bos_token_id is 1.5"),
    ],
)
def test_what_contradicts_itself_is_refused(values: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        PersimmonConfig.from_dict(values)


def test_the_first_of_several_end_tokens_counts() -> None:
    assert PersimmonConfig.from_dict({"eos_token_id": [7, 8]}).eos_token_id == 7
    assert PersimmonConfig.from_dict({"eos_token_id": []}).eos_token_id is None

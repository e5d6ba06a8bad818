"""GeneratesOnRuntime: a Persimmon of another base class generates on the runtime too."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerated_models import IDS, assert_served, batch, handed_over, small_model, text
from torch import Tensor, nn
from transformers import GenerationMixin, PersimmonConfig, PersimmonModel, PersimmonPreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

import adept_fast.modeling
from adept_fast.integrations.transformers.compatibility import CACHE_NAME
from adept_fast.integrations.transformers.generation import GeneratesOnRuntime


class OwnConfig(PersimmonConfig):
    pass


class OwnPersimmon(GeneratesOnRuntime, PersimmonPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The names of transformers' PersimmonForCausalLM, but not its class."""

    config_class = OwnConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = PersimmonModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids: Any = None, logits_to_keep: int = 0, **arguments: Any) -> Any:
        arguments["return_dict"] = True
        out = self.model(input_ids, **arguments)
        return CausalLMOutputWithPast(
            logits=self.lm_head(out.last_hidden_state[:, -logits_to_keep:]),
            **{CACHE_NAME: getattr(out, CACHE_NAME)},
        )


OwnPersimmon.__module__ = "adept_fast.modeling"  # a module whose classes the runtime knows


def own_model(seed: int = 0) -> OwnPersimmon:
    theirs = small_model(seed)
    model = OwnPersimmon(OwnConfig(**theirs.config.to_dict())).eval()
    model.load_state_dict(theirs.state_dict())
    return model


def test_the_first_generate_creates_the_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    model, untouched = own_model(), own_model()
    assert vars(model).keys() == vars(untouched).keys()
    model.state_dict()
    model.train().eval().float()
    assert vars(model).keys() == vars(untouched).keys()
    assert_served(model, small_model())

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model's forward was called")

    expected = small_model().generate(batch(2, 9), max_new_tokens=20, eos_token_id=None)
    monkeypatch.setattr(OwnPersimmon, "forward", refuse)
    for settings in ({}, {"max_new_tokens": 4}, {"do_sample": True}):
        found = model.generate(batch(2, 9), **{"max_new_tokens": 20, "eos_token_id": None} | settings)
        if not settings:
            assert torch.equal(found, expected)


def test_weights_that_change_are_used_and_saved(tmp_path: Path) -> None:
    model = own_model()
    text(model)
    assert not model.model.layers[0].mlp.dense_4h_to_h.weight.is_contiguous()
    model.load_state_dict(small_model(1).state_dict())
    assert_served(model, small_model(1))
    assert all(value.is_contiguous() for value in model.state_dict().values())
    text(model)
    model.save_pretrained(tmp_path)
    assert_served(OwnPersimmon.from_pretrained(tmp_path), small_model(1))
    assert all(parameter.is_contiguous() for parameter in model.train().parameters())
    model.eval().to(torch.bfloat16)
    assert torch.equal(text(model), text(own_model(1).to(torch.bfloat16)))


def test_copies_and_pickles_have_a_runtime_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adept_fast.modeling, "OwnPersimmon", OwnPersimmon, raising=False)  # a pickle names it
    model = own_model()
    text(model)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    model.load_state_dict(small_model(1).state_dict())
    for twin in twins:
        assert_served(twin, small_model())
    assert_served(model, small_model(1))


class Adapter(nn.Linear):
    """A module that adds to a linear layer, from a package that the runtime does not know."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x[..., :1]


@pytest.mark.parametrize(
    ("what", "settings"),
    [
        ("beam search", {"num_beams": 2}),
        ("model.layers.1.self_attn.dense, a", {}),
        ("model.layers.1.self_attn.dense, a", {"do_sample": True, "prompt_lookup_num_tokens": 2}),
    ],
)
def test_other_calls_run_on_its_own_forward(what: str, settings: dict[str, Any]) -> None:
    model, reference = own_model(), small_model()
    if what != "beam search":
        for changed in (model, reference):
            changed.model.layers[1].self_attn.dense.__class__ = Adapter
    results = []
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        for asked in (reference, model, model):
            torch.manual_seed(0)
            results.append(asked.generate(IDS, max_new_tokens=9, eos_token_id=96, **settings))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert len(handed_over(recorded)) == 1
    assert handed_over(recorded)[0].startswith(what)
    for changed in (model, reference):
        changed.model.layers[1].self_attn.dense.__class__ = nn.Linear
    assert_served(model, reference)

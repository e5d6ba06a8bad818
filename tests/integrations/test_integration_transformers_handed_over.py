"""``accelerate``: what transformers' own generate does in place of the runtime, and that it is said once."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from accelerated_models import IDS, assert_served, handed_over, small_model, text
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    PersimmonForCausalLM,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from adept_fast.integrations.transformers import accelerate
from adept_fast.integrations.transformers.compatibility import CACHE_NAME


class Custom(LogitsProcessor):
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return -scores


PADDED_RIGHT = {"attention_mask": torch.tensor([[1, 1, 1, 0]])}
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("beam search", {"num_beams": 3}),
    ("beam search", {"num_beams": 2, "do_sample": True}),
    ("the logits processor Custom", {"logits_processor": LogitsProcessorList([Custom()])}),
    ("the logits processor MinLengthLogitsProcessor", {"min_new_tokens": 5, "eos_token_id": 7}),
    ("the logits processor NoBadWordsLogitsProcessor", {"bad_words_ids": [[5, 6], [7]]}),
    ("the logits processor TypicalLogitsWarper", {"do_sample": True, "typical_p": 0.8}),
    (
        "the logits processor TopKLogitsWarper",
        {"logits_processor": LogitsProcessorList([TopKLogitsWarper(3)]), "repetition_penalty": 1.1},
    ),
    (
        "the logits processor TemperatureLogitsWarper",  # which would come after top-p, and not before
        {
            "do_sample": True,
            "temperature": 0.3,
            "top_k": 0,
            "logits_processor": LogitsProcessorList([TopPLogitsWarper(0.9)]),
        },
    ),
    ("padding that is not on the left", PADDED_RIGHT),
    ("position_ids", {"position_ids": torch.tensor([[3, 4, 5, 6]])}),
    ("output_hidden_states", {"output_hidden_states": True, "return_dict_in_generate": True}),
    ("a cache that the caller made", {CACHE_NAME: DynamicCache()}),
    ("a custom_generate", {"custom_generate": PersimmonForCausalLM._sample}),
]


@pytest.mark.parametrize(("what", "settings"), CALLS, ids=[what for what, _ in CALLS])
def test_what_is_handed_over_is_said_once(what: str, settings: dict[str, Any]) -> None:
    model, reference = accelerate(small_model()), small_model()
    results = []
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        for asked in (reference, model, model):
            torch.manual_seed(0)
            out = text(asked, pad_token_id=0, **copy.deepcopy(settings))
            results.append(out if isinstance(out, Tensor) else out.sequences)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert handed_over(recorded) == [what]
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        assert torch.equal(text(model), text(reference))  # the next call is served again
    assert handed_over(recorded) == []


def test_inputs_embeds_and_an_assistant_are_handed_over() -> None:
    model, reference = accelerate(small_model()), small_model()
    assistant = small_model(seed=3)
    embeds = reference.model.embed_tokens(IDS)
    for what, settings in (
        ("inputs_embeds", {"inputs_embeds": embeds}),
        ("assisted generation", {"input_ids": IDS, "assistant_model": assistant}),
    ):
        with pytest.warns(UserWarning, match=what):
            found = model.generate(**settings, max_new_tokens=9, eos_token_id=None)
        assert torch.equal(found, reference.generate(**settings, max_new_tokens=9, eos_token_id=None))


def test_a_hook_or_another_module_is_handed_over() -> None:
    model, reference = accelerate(small_model()), small_model()
    for changed in (model, reference):
        hook = changed.model.layers[1].mlp.register_forward_hook(lambda module, args, output: 2 * output)
        if changed is model:
            with pytest.warns(UserWarning, match="a hook on model.layers.1.mlp"):
                found = text(changed)
        else:
            assert torch.equal(found, text(changed))
        hook.remove()
    assert_served(model, reference)

    class Twice(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    for changed in (model, reference):
        linear = changed.model.layers[0].self_attn.dense
        linear.__class__ = Twice
    with pytest.warns(UserWarning, match=r"model\.layers\.0\.self_attn\.dense, a .*Twice"):
        found = text(model)
    assert torch.equal(found, text(reference))


class LowRank(torch.nn.Module):
    """An adapter around a linear layer, as adapter packages put it in the layer's place."""

    def __init__(self, base_layer: torch.nn.Linear, seed: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        generator = torch.Generator().manual_seed(seed)
        self.a = torch.nn.Parameter(torch.randn(base_layer.in_features, 2, generator=generator))
        self.b = torch.nn.Parameter(torch.randn(2, base_layer.out_features, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + 0.1 * x @ self.a @ self.b

    def merged(self) -> torch.nn.Linear:
        self.base_layer.weight.data += 0.1 * (self.a @ self.b).t()
        return self.base_layer


def test_adapters_are_handed_over_until_they_are_merged() -> None:
    model, reference = accelerate(small_model()), small_model()
    text(model)  # lays down-projections out
    for changed in (model, reference):
        layer = changed.model.layers[1]
        layer.mlp.dense_4h_to_h = LowRank(layer.mlp.dense_4h_to_h, seed=1)
        layer.self_attn.dense = LowRank(layer.self_attn.dense, seed=2)
    with pytest.warns(UserWarning, match=r"model\.layers\.1\.self_attn\.dense, a .*LowRank"):
        found = text(model)
    assert torch.equal(found, text(reference))
    assert not torch.equal(found, text(small_model()))
    for changed in (model, reference):
        layer = changed.model.layers[1]
        layer.mlp.dense_4h_to_h = layer.mlp.dense_4h_to_h.merged()
        layer.self_attn.dense = layer.self_attn.dense.merged()
    assert_served(model, reference)


def test_dropout_is_handed_over() -> None:
    model = small_model()
    model.config.hidden_dropout = 0.5
    accelerate(model).train()
    with pytest.warns(UserWarning, match="dropout"):
        text(model)


def test_generate_within_generate_is_handed_over() -> None:
    model = accelerate(small_model())
    expected = text(model)
    inner = []

    class Asks:
        def put(self, value: Tensor) -> None:
            if value.ndim == 1 and not inner:
                inner.append(text(model))

        def end(self) -> None:
            pass

    with pytest.warns(UserWarning, match="a generate within a generate"):
        outer = text(model, streamer=Asks())
    assert torch.equal(outer, expected)
    assert torch.equal(inner[0], expected)


def test_what_is_handed_over_gets_the_random_numbers_that_it_would_get_there() -> None:
    model, reference = accelerate(small_model()), small_model()
    model.lm_head.register_forward_pre_hook(lambda module, args: None)
    torch.manual_seed(8)
    with pytest.warns(UserWarning, match="a hook on lm_head"):
        found = text(model, do_sample=True)
    torch.manual_seed(8)
    assert torch.equal(found, text(reference, do_sample=True))


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1e300},
        {"temperature": 1e-38},
        {"temperature": 1e-300},
        {"repetition_penalty": 1e300},
        {"repetition_penalty": 1e-40},
        {"repetition_penalty": float("inf")},
        {"top_k": 10**400},
        {"min_p": 1.0},
    ],
    ids=str,
)
def test_numbers_beyond_those_of_the_runtime_are_handed_over(settings: dict[str, Any]) -> None:
    """Whatever comes of it there, a text or an error."""
    found, said = [], []
    for model in (accelerate(small_model()), small_model()):
        torch.manual_seed(5)
        with warnings.catch_warnings(record=True) as recorded:
            warnings.simplefilter("always")
            try:
                found.append(text(model, do_sample=True, **settings).tolist())
            except (RuntimeError, ValueError) as error:
                found.append(str(error))
        said.append(handed_over(recorded))
    assert found[0] == found[1]
    assert len(said[0]) == 1
    assert next(iter(settings)) in said[0][0]


def test_a_length_beyond_all_memory_takes_none() -> None:
    model, reference = accelerate(small_model()), small_model()
    eos = int(text(reference, max_new_tokens=30)[0, -1])
    found = text(model, max_new_tokens=None, max_length=10**12, eos_token_id=eos)
    assert torch.equal(found, text(reference, max_new_tokens=None, max_length=10**12, eos_token_id=eos))
    assert found[0, -1] == eos

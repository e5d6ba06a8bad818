"""transformers' own tests of models, on the classes that ADEPT_FAST_PEER_GROUP names.

``ours``: adept_fast.modeling; ``accelerated``: transformers' PersimmonForCausalLM, each instance of which is
accelerated once it has weights; ``transformers``: its own classes. Run by ``python -m tools.peer_tests``.
"""

from __future__ import annotations

import functools
import importlib
import os
import unittest
from typing import Any

import torch
import transformers
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin
from transformers.models.persimmon import modeling_persimmon

GROUP = os.environ["ADEPT_FAST_PEER_GROUP"]
PACKED = "the norms of queries and keys see padding"


def _optional(module: str, name: str) -> Any:
    """A mixin that older releases lack."""
    found = getattr(importlib.import_module(f"tests.{module}"), name)
    return found if isinstance(found, type) else type(name, (), {})


Pipelines = _optional("test_pipeline_mixin", "PipelineTesterMixin")
Training = _optional("test_training_mixin", "TrainingTesterMixin")
TensorParallel = _optional("test_tensor_parallel_mixin", "TensorParallelTesterMixin")
ShardedData = _optional("test_fsdp_mixin", "FSDPTesterMixin")
Generation = _optional("generation.test_utils", "GenerationTesterMixin")


def _accelerate_every_instance() -> None:
    from adept_fast.integrations.transformers import accelerate

    theirs = transformers.PersimmonForCausalLM
    construct, load = theirs.__init__, theirs.from_pretrained.__func__

    @functools.wraps(construct)
    def constructed(self: Any, *arguments: Any, **named: Any) -> None:
        construct(self, *arguments, **named)
        if type(self) is theirs and self.device.type != "meta":
            accelerate(self)

    @functools.wraps(load)
    def loaded(cls: Any, *arguments: Any, **named: Any) -> Any:
        result = load(cls, *arguments, **named)
        model = result[0] if isinstance(result, tuple) else result
        if type(model) is theirs:
            accelerate(model)
        return result

    theirs.__init__ = constructed
    theirs.from_pretrained = classmethod(loaded)


if GROUP == "ours":
    import adept_fast.modeling as source

    Config: Any = source.PersimmonConfig
else:
    source = modeling_persimmon
    Config = transformers.PersimmonConfig
if GROUP == "accelerated":
    _accelerate_every_instance()
    CLASSES = [source.PersimmonForCausalLM]
else:
    CLASSES = [
        source.PersimmonModel,
        source.PersimmonForCausalLM,
        source.PersimmonForSequenceClassification,
        source.PersimmonForTokenClassification,
    ]


class Tester:
    """A small model's config and inputs."""

    batch_size, seq_length, is_training = 13, 7, True
    vocab_size, hidden_size, intermediate_size = 99, 32, 64
    num_hidden_layers = num_attention_heads = 2
    num_labels, type_sequence_label_size = 3, 2
    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2
    base_model_class, causal_lm_class = source.PersimmonModel, source.PersimmonForCausalLM

    def __init__(self, parent: unittest.TestCase) -> None:
        self.parent = parent

    def get_config(self) -> Any:
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        ids = ("pad_token_id", "bos_token_id", "eos_token_id")
        settings = {name: getattr(self, name) for name in (*names, *ids, "num_labels")}
        return Config(hidden_act="relu2", max_position_embeddings=512, **settings)

    def ids(self) -> torch.Tensor:
        return torch.randint(3, self.vocab_size, (self.batch_size, self.seq_length))

    def prepare_config_and_inputs(self) -> tuple[Any, dict[str, torch.Tensor]]:
        return self.prepare_config_and_inputs_for_common()

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        ids = self.ids()
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.tril(torch.ones_like(ids))}


class TestModel(
    ModelTesterMixin, Generation, Pipelines, Training, TensorParallel, ShardedData, unittest.TestCase
):
    """The mixins, and of each class one call."""

    all_model_classes = CLASSES
    pipeline_model_mapping = (
        {}
        if GROUP == "accelerated"
        else {
            "feature-extraction": source.PersimmonModel,
            "text-classification": source.PersimmonForSequenceClassification,
            "token-classification": source.PersimmonForTokenClassification,
        }
    )

    def setUp(self) -> None:
        self.model_tester = Tester(self)
        self.config_tester = ConfigTester(self, config_class=Config)

    def test_config(self) -> None:
        self.config_tester.run_common_tests()

    def test_shapes(self) -> None:
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        rows, length = inputs["input_ids"].shape
        expected = {
            "PersimmonModel": ("last_hidden_state", (rows, length, config.hidden_size)),
            "PersimmonForCausalLM": ("logits", (rows, length, config.vocab_size)),
            "PersimmonForSequenceClassification": ("logits", (rows, config.num_labels)),
            "PersimmonForTokenClassification": ("logits", (rows, length, config.num_labels)),
        }
        for each in CLASSES:
            output, shape = expected[each.__name__]
            assert getattr(each(config).eval()(**inputs), output).shape == shape

    @unittest.skip(PACKED)
    def test_flash_attention_2_padding_matches_padding_free_with_position_ids(self) -> None: ...

    @unittest.skip(PACKED)
    def test_eager_padding_matches_padding_free_with_position_ids(self) -> None: ...

    @unittest.skip(PACKED)
    def test_sdpa_padding_matches_padding_free_with_position_ids(self) -> None: ...

    if not hasattr(Generation, "test_greedy_generate"):

        @unittest.skip("the source distribution lacks the tests of generate")
        def test_generation_tester_mixin_inheritance(self) -> None: ...

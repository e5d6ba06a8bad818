"""from_pretrained and save_pretrained with the arguments that scripts pass, against transformers'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from test_modeling import HEADS, assert_same, ids_of, pair_of
from test_modeling_pretrained import ours_of, theirs_of

from adept_fast import CheckpointError, modeling
from adept_fast.arguments import ParameterError
from adept_fast.config import ConfigError

PARTS = ("embed_tokens", "layers", "final_layernorm")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved")
    for head in HEADS:
        pair_of(head)[1].save_pretrained(path / head)
    return path


@pytest.mark.parametrize(
    "given",
    [
        {"torch_dtype": "float32"},
        {"torch_dtype": torch.bfloat16},
        {"dtype": "auto"},
        {"low_cpu_mem_usage": True, "trust_remote_code": False, "use_safetensors": True},
        {"device_map": "auto"},
        {"device_map": "cpu", "dtype": torch.float16},
        {"device_map": torch.device("cpu")},
        {"device_map": {"": "cpu"}},
        {"attn_implementation": "eager"},
    ],
    ids=str,
)
def test_what_scripts_pass(saved: Path, given: dict[str, Any]) -> None:
    ours = modeling.PersimmonForCausalLM.from_pretrained(saved / "ForCausalLM", **given)
    theirs = transformers.PersimmonForCausalLM.from_pretrained(saved / "ForCausalLM", **given)
    ids = ids_of(ours)
    assert ours.dtype == theirs.dtype
    assert ours.device == theirs.device
    assert ours.config._attn_implementation == theirs.config._attn_implementation
    assert hasattr(ours, "hf_device_map") or "device_map" not in given
    if ours.dtype == torch.float32:
        assert_same(ours(ids), theirs(ids))


def test_a_folder_below(saved: Path) -> None:
    model = modeling.PersimmonForCausalLM.from_pretrained(saved, subfolder="ForCausalLM")
    assert model.config.vocab_size == 99
    assert modeling.PersimmonConfig.from_pretrained(saved, subfolder="Model").vocab_size == 99
    for load in (modeling.PersimmonModel.from_pretrained, modeling.PersimmonConfig.from_pretrained):
        with pytest.raises(FileNotFoundError, match="there is no such file or directory"):
            load(saved, subfolder="nowhere")


def test_a_device_map_of_parts(saved: Path) -> None:
    parts = {f"model.{part}": "cpu" for part in PARTS} | {"lm_head": "cpu"}
    ours = modeling.PersimmonForCausalLM.from_pretrained(saved / "ForCausalLM", device_map=parts)
    whole = modeling.PersimmonForCausalLM.from_pretrained(saved / "ForCausalLM")
    ids = ids_of(ours)
    assert ours.hf_device_map == parts
    assert torch.equal(ours(ids).logits, whole(ids).logits)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"device_map": {"model": "cpu"}}, "device_map has no device for lm_head.weight"),
        ({"device_map": "disc"}, "device_map is 'disc'; expected a device of torch"),
        ({"device_map": "meta"}, "device_map is 'meta'; expected a device that holds weights"),
        ({"device_map": {"": "cuda:99"}}, r"device_map\[''\] is 'cuda:99', and torch finds \d+ GPUs"),
        ({"device_map": 99}, r"device_map is 99, and torch finds \d+ GPUs"),
        ({"torch_dtype": "int8"}, "dtype is 'int8'; expected 'auto', float32, float16 or bfloat16"),
        ({"attn_implementation": "flash_attention_2"}, "expected 'sdpa' or 'eager'"),
        ({"load_in_4bit": True}, "load_in_4bit is True; expected none, as adept_fast.Runtime.load"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is .*; expected none"),
        ({"subfolder": "../x"}, "subfolder is '../x'; expected a folder below the directory"),
        ({"subfolder": "/x"}, "subfolder is '/x'; expected a folder below the directory"),
        ({"local_files_only": True}, "HF_HUB_OFFLINE=1 forbids downloads"),
        ({"ignore_mismatched_sizes": 1}, "ignore_mismatched_sizes is 1; expected True or False"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_named(saved: Path, given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ParameterError, match=sentence):
        modeling.PersimmonForCausalLM.from_pretrained(saved / "ForCausalLM", **given)


@pytest.mark.parametrize(
    ("source", "target", "given"),
    [
        ("ForCausalLM", "ForCausalLM", {}),
        ("ForCausalLM", "Model", {}),
        ("ForCausalLM", "ForSequenceClassification", {"num_labels": 4}),
        ("Model", "ForCausalLM", {}),
        ("ForSequenceClassification", "ForTokenClassification", {}),
        ("ForSequenceClassification", "ForSequenceClassification", {"num_labels": 5}),
    ],
)
def test_the_loading_info_is_theirs(saved: Path, source: str, target: str, given: dict[str, Any]) -> None:
    given = given | {"output_loading_info": True, "ignore_mismatched_sizes": True}
    _, theirs = theirs_of(target).from_pretrained(saved / source, **given)
    if theirs["missing_keys"] or theirs["mismatched_keys"]:
        with pytest.warns(UserWarning, match="these weights are random and need training"):
            _, ours = ours_of(target).from_pretrained(saved / source, **given)
    else:
        _, ours = ours_of(target).from_pretrained(saved / source, **given)
    for name in ("missing_keys", "unexpected_keys"):
        assert set(ours[name]) == set(theirs[name]), name
    mismatched = {(name, tuple(found), tuple(wanted)) for name, found, wanted in theirs["mismatched_keys"]}
    assert ours["mismatched_keys"] == mismatched


def test_other_shapes_are_refused_unless_asked_for(saved: Path) -> None:
    path, load = saved / "ForTokenClassification", modeling.PersimmonForTokenClassification.from_pretrained
    with pytest.raises(
        CheckpointError, match=r"score.weight has shape \[3, 36\]; the config calls for \[5, 36\]"
    ):
        load(path, num_labels=5)
    with pytest.warns(UserWarning, match="has no score.bias and no score.weight of this shape|of this shape"):
        model = load(path, num_labels=5, ignore_mismatched_sizes=True)
    assert model.score.weight.shape == (5, 36)
    assert model.score.weight.abs().max() > 0
    assert torch.equal(model.score.bias, torch.zeros(5))


def test_labels_by_either_name(saved: Path) -> None:
    names = {"bad": 0, "good": 1, "neither": 2}
    numbers = {at: name for name, at in names.items()}
    for given in ({"label2id": names}, {"id2label": numbers}, {"label2id": names, "id2label": numbers}):
        model = modeling.PersimmonForSequenceClassification.from_pretrained(
            saved / "ForSequenceClassification", **given
        )
        assert (model.config.id2label, model.config.label2id) == (numbers, names)
    with pytest.raises(ConfigError, match="num_labels is 2, id2label has 3 names"):
        modeling.PersimmonForSequenceClassification.from_pretrained(
            saved / "ForSequenceClassification", num_labels=2, id2label=numbers
        )


def test_a_file_cannot_name_code_or_replace_methods(tmp_path: Path) -> None:
    ours, _ = pair_of("ForCausalLM")
    ours.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    hostile = {
        "attn_implementation": "somebody/kernel",
        "_attn_implementation": "somebody/kernel",
        "experts_implementation": "somebody/kernel",
        "auto_map": {"AutoModel": "code.Model"},
        "to_dict": 1,
        "from_dict": 1,
        "get_text_config": "x",
        "dtype": ["load"],
        "model_type_of_mine": "kept",
    }
    (tmp_path / "config.json").write_text(json.dumps(values | hostile))
    loaded = modeling.PersimmonForCausalLM.from_pretrained(tmp_path)
    assert loaded.config._attn_implementation == "sdpa"
    assert loaded.config.to_dict()["hidden_size"] == 36
    assert loaded.config.model_type_of_mine == "kept"
    assert not hasattr(loaded.config, "auto_map")
    ids = ids_of(ours)
    assert torch.equal(loaded(ids).logits, ours(ids).logits)


def test_settings_of_generate_are_kept(tmp_path: Path) -> None:
    ours, _ = pair_of("ForCausalLM")
    ours.generation_config.eos_token_id = [3, 4]
    ours.generation_config.max_new_tokens = 7
    ours.save_pretrained(tmp_path)
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"update": 1, "validate": 1}))
    for cls in (modeling.PersimmonForCausalLM, transformers.PersimmonForCausalLM):
        loaded = cls.from_pretrained(tmp_path).generation_config
        assert (loaded.eos_token_id, loaded.max_new_tokens) == ([3, 4], 7)


def test_shards(tmp_path: Path) -> None:
    ours, _ = pair_of("ForCausalLM")
    ours.save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    for file in files:
        with safe_open(tmp_path / file, "pt") as opened:
            sizes = [opened.get_tensor(name).nbytes for name in opened.keys()]  # noqa: SIM118
        assert len(sizes) == 1 or sum(sizes) <= 20_000
    ids = ids_of(ours)
    again = modeling.PersimmonForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, ours(ids).logits)
    assert_same(again(ids), transformers.PersimmonForCausalLM.from_pretrained(tmp_path)(ids))
    with pytest.raises(CheckpointError, match="has model.safetensors.index.json of other weights"):
        ours.save_pretrained(tmp_path)


def test_weights_that_are_given_are_saved(tmp_path: Path) -> None:
    ours, _ = pair_of("ForCausalLM", tie_word_embeddings=True)
    state = {name: torch.zeros_like(tensor) for name, tensor in ours.state_dict().items()}
    ours.save_pretrained(tmp_path / "here", state_dict=state, is_main_process=True)
    loaded = modeling.PersimmonForCausalLM.from_pretrained(tmp_path / "here")
    assert not any(parameter.any() for parameter in loaded.parameters())
    ours.save_pretrained(tmp_path / "nowhere", is_main_process=False)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"push_to_hub": True}, "push_to_hub is True; expected False, as nothing is uploaded here"),
        (
            {"safe_serialization": False},
            "safe_serialization is False; expected True, as no pickle is written",
        ),
        ({"max_shard_size": "much"}, "max_shard_size is 'much'; expected bytes, or such as '5GB'"),
        ({"max_shard_size": 0}, "max_shard_size is 0"),
        ({"variant": "fp16"}, "variant is 'fp16'; expected None"),
    ],
    ids=str,
)
def test_what_cannot_be_saved_is_named(tmp_path: Path, given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ParameterError, match=sentence):
        pair_of("Model")[0].save_pretrained(tmp_path / "x", **given)
    assert not (tmp_path / "x").exists()

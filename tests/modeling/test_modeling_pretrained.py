"""One checkpoint serves transformers' classes and ours, both ways; what is wrong with one is one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import demo_tokenizer, random_tensors, small_config, write_adept, write_huggingface
from safetensors.torch import load_file, save_file
from test_modeling import HEADS, assert_same, ids_of, pair_of

from adept_fast import CheckpointError, Runtime, modeling
from adept_fast.checkpoint import demo_path
from adept_fast.config import ConfigError
from adept_fast.config import PersimmonConfig as Architecture

FAMILY: dict[str, dict[str, Any]] = {
    "as it is": {},
    "tied": {"tie_word_embeddings": True},
    "of one label": {"num_labels": 1},
    "with names": {
        "id2label": {0: "bad", 1: "good", 2: "neither"},
        "problem_type": "single_label_classification",
    },
}


def ours_of(head: str) -> Any:
    return getattr(modeling, f"Persimmon{head}")


def theirs_of(head: str) -> Any:
    return getattr(transformers, f"Persimmon{head}")


@pytest.mark.slow
@pytest.mark.parametrize("changes", list(FAMILY))
@pytest.mark.parametrize("head", HEADS)
def test_what_ours_saves_theirs_loads_and_back(tmp_path: Path, head: str, changes: str) -> None:
    settings = FAMILY[changes]
    ours, theirs = pair_of(head, **{name: value for name, value in settings.items() if name != "id2label"})
    if "id2label" in settings:
        ours.config.id2label = settings["id2label"]
        theirs.config.id2label = settings["id2label"]
    ids = ids_of(ours)
    expected = ours(ids)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    assert sorted(load_file(tmp_path / "ours/model.safetensors")) == sorted(
        load_file(tmp_path / "theirs/model.safetensors")
    )
    loaded, info = theirs_of(head).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert_same(expected, loaded(ids))
    for name in ("num_labels", "id2label", "problem_type", "pad_token_id", "tie_word_embeddings"):
        assert getattr(loaded.config, name) == getattr(theirs.config, name), name
    for path in ("ours", "theirs"):
        again = ours_of(head).from_pretrained(tmp_path / path)
        assert not again.training
        assert torch.equal(again(ids)[0], expected[0])
        assert again.config.id2label == ours.config.id2label
        assert again.config.problem_type == ours.config.problem_type
    names = {"config.json", "model.safetensors"} | (
        {"generation_config.json"} if head == "ForCausalLM" else set()
    )
    assert {file.name for file in (tmp_path / "ours").iterdir()} == names


@pytest.mark.parametrize("head", HEADS)
def test_parameters_have_their_names_and_order(head: str) -> None:
    ours, theirs = pair_of(head)
    assert list(dict(ours.named_parameters())) == list(dict(theirs.named_parameters()))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.num_parameters() == theirs.num_parameters()


def test_the_demo_gives_the_same_as_theirs() -> None:
    ours = modeling.PersimmonForCausalLM.from_pretrained("demo", dtype="float32")
    theirs = transformers.PersimmonForCausalLM.from_pretrained(demo_path(), dtype=torch.float32)
    ids = ids_of(ours)
    with torch.no_grad():
        assert_same(ours(ids, labels=ids), theirs(ids, labels=ids))


def test_it_goes_on_as_the_runtime_does(demo: Runtime) -> None:
    """Token for token by hand, over the cache."""
    model = modeling.PersimmonForCausalLM.from_pretrained("demo", dtype="float32")
    prompt = "human: What is the capital of Peru?\n\nadept:"
    ids, past, chosen = torch.tensor([demo.tokenizer.encode(prompt)]), None, []
    with torch.no_grad():
        for _ in range(9):
            out = model(ids, past_key_values=past, logits_to_keep=1)
            ids, past = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values
            chosen.append(int(ids))
    assert demo.tokenizer.decode(chosen).startswith("The capital of Peru is Lima.")


def test_adepts_release_and_a_packed_one(tmp_path: Path) -> None:
    config = small_config()
    tensors = random_tensors(config)
    hf = write_huggingface(tmp_path / "hf", config, tensors, demo_tokenizer(), shards=3)
    adept = write_adept(tmp_path / "adept.tar", config, tensors, demo_tokenizer(), ranks=2, tar=True)
    ids = torch.tensor([[5, 6, 7]])
    one = modeling.PersimmonForCausalLM.from_pretrained(hf)(ids).logits
    assert torch.equal(one, modeling.PersimmonForCausalLM.from_pretrained(adept)(ids).logits)


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        ("auto", torch.float16),
        (torch.bfloat16, torch.bfloat16),
        ("bfloat16", torch.bfloat16),
        (torch.float32, torch.float32),
    ],
)
def test_dtype(given: Any, dtype: torch.dtype) -> None:
    model = modeling.PersimmonModel.from_pretrained("demo", dtype=given)
    assert model.dtype == dtype
    assert {each.dtype for each in model.parameters()} == {dtype}
    assert model(torch.ones(1, 2).long())[0].dtype == dtype


@pytest.mark.parametrize("given", ["float64", torch.int8, None])
def test_another_dtype_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="expected 'auto', float32, float16 or bfloat16"):
        modeling.PersimmonModel.from_pretrained("demo", dtype=given)


@pytest.mark.parametrize(
    ("head", "missing"),
    [
        ("ForSequenceClassification", "has no score.weight;"),
        ("ForTokenClassification", "has no score.weight and no score.bias;"),
    ],
)
def test_a_head_that_is_missing_begins_random(head: str, missing: str) -> None:
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=missing):
        model = ours_of(head).from_pretrained("demo", dtype="float32", num_labels=50, initializer_range=0.1)
    assert model.score.weight.shape == (50, 256)
    assert abs(model.score.weight.std() - 0.1) < 0.005
    assert head == "ForSequenceClassification" or (model.score.bias == 0).all()
    base = modeling.PersimmonModel.from_pretrained("demo", dtype="float32")
    assert all(torch.equal(model.model.state_dict()[name], each) for name, each in base.state_dict().items())


def test_new_models_are_initialised_as_theirs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ours = modeling.PersimmonForTokenClassification(
        modeling.PersimmonConfig(
            vocab_size=300,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=2,
            initializer_range=0.3,
            pad_token_id=7,
            num_labels=40,
        )
    )
    config = transformers.PersimmonConfig.from_dict(ours.config.to_dict())
    theirs = dict(transformers.PersimmonForTokenClassification(config).named_parameters())
    for name, parameter in ours.named_parameters():
        if name.endswith("bias") or "layernorm" in name:
            assert torch.equal(parameter, theirs[name]), name
        else:
            assert abs(parameter.std() / theirs[name].std() - 1) < 0.05, name
    assert (ours.model.embed_tokens.weight[7] == 0).all()


def test_tied_parameters_are_one(tmp_path: Path) -> None:
    ours, _ = pair_of("ForCausalLM", tie_word_embeddings=True)
    ours.save_pretrained(tmp_path)
    for model in (ours, modeling.PersimmonForCausalLM.from_pretrained(tmp_path)):
        assert model.lm_head.weight is model.model.embed_tokens.weight


def test_saving_replaces_what_was_saved_and_leaves_the_rest(tmp_path: Path) -> None:
    ours, _ = pair_of("ForCausalLM")
    (tmp_path / "tokenizer.model").write_bytes(b"kept")
    ours.save_pretrained(tmp_path)
    before = ours.lm_head.weight.detach().clone()
    ours.lm_head.weight.data += 1
    ours.save_pretrained(tmp_path)
    again = modeling.PersimmonForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, before + 1)
    assert (tmp_path / "tokenizer.model").read_bytes() == b"kept"
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"has model.safetensors.index.json of other weights"):
        ours.save_pretrained(tmp_path)


def test_a_saved_model_runs_where_a_tokenizer_is_beside_it(tmp_path: Path) -> None:
    modeling.PersimmonForCausalLM.from_pretrained("demo").save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(demo_tokenizer())
    runtime = Runtime.load(tmp_path, progress=False)
    prompt = "human: What is the capital of Peru?\n\nadept:"
    assert runtime.generate(prompt).text.startswith(" The capital of Peru is Lima.")


def damaged(path: Path, change: str) -> None:
    file = path / "model.safetensors"
    tensors = load_file(file)
    if change == "missing":
        del tensors["model.layers.1.mlp.dense_h_to_4h.bias"]
    elif change == "left over":
        tensors["model.layers.9.mlp.dense_h_to_4h.bias"] = torch.ones(3)
    elif change == "misshapen":
        tensors["model.final_layernorm.bias"] = torch.ones(37)
    elif change == "of integers":
        tensors["score.weight"] = torch.ones(3, 36).long()
    elif change == "of fewer labels":
        tensors["score.weight"] = torch.ones(2, 36)
    elif change == "too large":
        tensors["model.final_layernorm.bias"][3] = 1e6
    save_file(tensors, file, {"format": "pt"})
    if change == "cut":
        file.write_bytes(file.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            "missing",
            r"tensor model.layers.1.mlp.dense_h_to_4h.bias is missing; the config calls for shape \[53\]",
        ),
        ("left over", "tensor model.layers.9.mlp.dense_h_to_4h.bias does not belong"),
        ("misshapen", r"tensor model.final_layernorm.bias has shape \[37\]; the config calls for \[36\]"),
        ("of integers", "tensor score.weight has dtype int64"),
        ("of fewer labels", r"tensor score.weight has shape \[2, 36\]; the config calls for \[3, 36\]"),
        ("too large", "tensor model.final_layernorm.bias holds 1e.06; float16 ends at 65504"),
        ("cut", "not a valid safetensors file"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: str, sentence: str) -> None:
    pair_of("ForSequenceClassification")[0].save_pretrained(tmp_path)
    damaged(tmp_path, change)
    with pytest.raises(CheckpointError, match=sentence) as caught:
        modeling.PersimmonForSequenceClassification.from_pretrained(tmp_path, dtype="float16")
    assert "model.safetensors" in str(caught.value) or change == "missing"


def test_a_path_without_a_checkpoint(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match=str(path)):
            modeling.PersimmonModel.from_pretrained(path)


class TestConfig:
    def test_it_is_read_as_theirs_writes_it(self, tmp_path: Path) -> None:
        theirs = transformers.PersimmonConfig(
            vocab_size=50,
            hidden_size=32,
            num_attention_heads=2,
            num_labels=5,
            pad_token_id=3,
            problem_type="regression",
            hidden_dropout=0.25,
            attention_dropout=0.5,
            eos_token_id=[4, 9],
            initializer_range=0.5,
            use_cache=False,
            tie_word_embeddings=True,
        )
        theirs.save_pretrained(tmp_path)
        ours = modeling.PersimmonConfig.from_pretrained(tmp_path)
        for name in (
            "vocab_size",
            "num_labels",
            "pad_token_id",
            "problem_type",
            "hidden_dropout",
            "attention_dropout",
            "initializer_range",
            "use_cache",
            "tie_word_embeddings",
            "label2id",
            "qk_layernorm",
        ):
            assert getattr(ours, name) == getattr(theirs, name), name
        assert ours.id2label == theirs.id2label
        assert ours.eos_token_id == [4, 9]

    def test_theirs_reads_what_it_writes(self) -> None:
        ours = modeling.PersimmonConfig(num_labels=4, classifier_dropout=0.5, pad_token_id=1, rope_theta=3.0)
        theirs = transformers.PersimmonConfig.from_dict(json.loads(json.dumps(ours.to_dict())))
        expected = theirs.to_dict()
        assert {name: expected[name] for name in ours.to_dict()} == ours.to_dict()
        assert modeling.PersimmonConfig.from_dict(expected).to_dict() == ours.to_dict()

    def test_fields_may_be_set(self) -> None:
        config = modeling.PersimmonConfig(id2label={0: "a", 1: "b"})
        config.pad_token_id = 5
        config.num_labels = 3
        assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
        config.hidden_size, config.num_attention_heads = 128, 4
        config.num_hidden_layers = 1
        config.vocab_size = config.intermediate_size = 9
        assert modeling.PersimmonModel(config).layers[0].self_attn.dense.weight.shape == (128, 128)
        config.num_attention_heads = 3
        with pytest.raises(ConfigError, match="hidden_size 128 is not a multiple of num_attention_heads 3"):
            modeling.PersimmonModel(config)

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"hidden_dropout": 1.5}, "hidden_dropout is 1.5; expected a probability from 0 to 1"),
            ({"attention_dropout": "0"}, "attention_dropout is '0'"),
            ({"num_labels": 0}, "num_labels is 0; expected an integer from 1 to 1000000"),
            ({"num_labels": 3, "id2label": {0: "a"}}, "num_labels is 3, id2label has 1 names"),
            ({"problem_type": "ranking"}, "problem_type is 'ranking'; expected None or one of regression,"),
            (
                {"problem_type": "single_label_classification", "num_labels": 1},
                "problem_type is 'single_label_classification' and num_labels 1; expected at least 2",
            ),
            ({"initializer_range": -1}, "initializer_range is -1; expected a number from 0"),
            ({"use_cache": 1}, "use_cache is 1; expected true or false"),
            ({"vocab_size": 0}, "vocab_size is 0"),
        ],
    )
    def test_what_is_out_of_range_is_named(self, changes: dict[str, Any], sentence: str) -> None:
        with pytest.raises(ConfigError, match=sentence):
            modeling.PersimmonConfig(**changes)

    def test_the_runtimes_is_taken_too(self) -> None:
        config = Architecture(
            vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
        assert modeling.PersimmonModel(config).config.num_labels == 2

    def test_unknown_arguments_are_refused(self) -> None:
        with pytest.raises(TypeError, match="no argument torch_type"):
            modeling.PersimmonModel.from_pretrained("demo", torch_type="auto")

"""Hugging Face directories: every layout, and each assert_refused with the file and what was expected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import (
    assert_holds,
    assert_refused,
    random_tensors,
    small_config,
    write_huggingface,
)
from small_checkpoint import CONFIG, TENSORS, TOKENIZER

from adept_fast.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from adept_fast.config import ConfigError, PersimmonConfig
from adept_fast.tokenizer.tokenizer import TokenizerError
from adept_fast.weights import load_weights

CPU = torch.device("cpu")
UP = "model.layers.1.mlp.dense_h_to_4h.weight"
GAMMA = "model.layers.0.input_layernorm.weight"


def rewrite_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class TestLayouts:
    @pytest.mark.parametrize("shards", [1, 2, 5])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_files(self, tmp_path: Path, shards: int, dtype: torch.dtype) -> None:
        tensors = random_tensors(CONFIG, dtype=dtype)
        checkpoint = open_checkpoint(write_huggingface(tmp_path, CONFIG, tensors, TOKENIZER, shards))
        assert (checkpoint.format, checkpoint.path) == ("huggingface", tmp_path)
        assert checkpoint.config == CONFIG
        assert checkpoint.dtype == dtype
        assert_holds(checkpoint, tensors)

    def test_index_comes_before_a_single_file(self, tmp_path: Path) -> None:
        other = random_tensors(CONFIG, seed=1, dtype=torch.float16)
        write_huggingface(tmp_path, CONFIG, other, TOKENIZER)
        write_huggingface(tmp_path, CONFIG, TENSORS, TOKENIZER, shards=2)
        assert_holds(open_checkpoint(tmp_path), TENSORS)

    def test_tied_embeddings(self, tmp_path: Path) -> None:
        config = small_config(tie_word_embeddings=True)
        tensors = random_tensors(config)
        checkpoint = open_checkpoint(write_huggingface(tmp_path, config, tensors, TOKENIZER))
        assert_holds(checkpoint, tensors)
        weights = load_weights(checkpoint, dtype=torch.float32, device=CPU)
        assert weights.lm_head is weights.embedding

    def test_tied_embeddings_saved_twice(self, tmp_path: Path) -> None:
        config = small_config(tie_word_embeddings=True)
        tensors = random_tensors(config)
        twice = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
        assert_holds(open_checkpoint(write_huggingface(tmp_path, config, twice, TOKENIZER)), tensors)

    def test_no_qk_layernorm(self, tmp_path: Path) -> None:
        config = small_config(qk_layernorm=False)
        tensors = random_tensors(config)
        checkpoint = open_checkpoint(write_huggingface(tmp_path, config, tensors, TOKENIZER))
        assert_holds(checkpoint, tensors)
        layer = load_weights(checkpoint, dtype=torch.float32, device=CPU).layers[0]
        assert layer.q_gamma is layer.k_beta is None

    def test_derived_buffers_are_left_alone(self, tmp_path: Path) -> None:
        buffers = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
        checkpoint = open_checkpoint(write_huggingface(tmp_path, CONFIG, TENSORS | buffers, TOKENIZER))
        assert_holds(checkpoint, TENSORS)

    def test_opening_reads_no_weight(self, tmp_path: Path) -> None:
        path = write_huggingface(tmp_path, CONFIG, TENSORS, TOKENIZER) / "model.safetensors"
        contents = path.read_bytes()
        header = 8 + int.from_bytes(contents[:8], "little")
        path.write_bytes(contents[:header] + b"\xff" * (len(contents) - header))
        assert torch.isnan(open_checkpoint(tmp_path).tensors[UP].read()).all()


class TestConfig:
    ROTARY = {"rope_theta": 123.0, "partial_rotary_factor": 0.25}

    def open_with(self, path: Path, **overrides: Any) -> PersimmonConfig:
        return open_checkpoint(write_huggingface(path, CONFIG, TENSORS, TOKENIZER, **overrides)).config

    @pytest.mark.parametrize(
        "spelling",
        [
            {"rope_parameters": ..., **ROTARY},
            {"rope_parameters": None, **ROTARY},
            {"rope_parameters": {"rope_type": "default", **ROTARY}, "rope_theta": ...},
            {"rope_parameters": ROTARY, "rope_theta": 5.0, "partial_rotary_factor": 1.0},
            {"rope_parameters": {"rope_theta": 123.0}, "partial_rotary_factor": 0.25},
            {"rope_parameters": ..., "rope_scaling": {"type": "default", **ROTARY}},
        ],
    )
    def test_rotary_spellings(self, tmp_path: Path, spelling: dict[str, Any]) -> None:
        config = self.open_with(tmp_path, **spelling)
        assert (config.rope_theta, config.partial_rotary_factor) == (123.0, 0.25)

    def test_defaults_are_those_of_transformers(self, tmp_path: Path) -> None:
        removed = dict.fromkeys(("rope_parameters", "rope_theta", "layer_norm_eps", "hidden_act"), ...)
        config = self.open_with(tmp_path, **removed)
        assert (config.rope_theta, config.layer_norm_eps) == (10000.0, 1e-5)

    @pytest.mark.parametrize(("value", "expected"), [([7, 8], 7), ([], None), (None, None), (3, 3)])
    def test_end_tokens(self, tmp_path: Path, value: object, expected: int | None) -> None:
        assert self.open_with(tmp_path, eos_token_id=value).eos_token_id == expected

    @pytest.mark.parametrize(
        ("overrides", "found"),
        [
            ({"model_type": "llama"}, "'llama'"),
            ({"hidden_act": "gelu"}, "'gelu'"),
            ({"hidden_size": 66}, "66 is not a multiple of num_attention_heads 4"),
            ({"hidden_size": "64"}, "'64'"),
            ({"hidden_size": 64.0}, "64.0"),
            ({"hidden_size": None}, "None"),
            ({"hidden_size": 2**31}, "2147483648"),
            ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
            ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000"),
            ({"num_attention_heads": True}, "num_attention_heads is True"),
            ({"intermediate_size": -1}, "intermediate_size is -1"),
            ({"vocab_size": [4160]}, "vocab_size is [4160]"),
            ({"max_position_embeddings": 0}, "max_position_embeddings is 0"),
            ({"layer_norm_eps": 0}, "layer_norm_eps is 0"),
            ({"layer_norm_eps": float("nan")}, "layer_norm_eps is NaN"),
            ({"layer_norm_eps": "1e-5"}, "'1e-5'"),
            ({"rope_parameters": {"rope_theta": float("inf")}}, "rope_theta is Infinity"),
            ({"rope_parameters": {"rope_theta": -1}}, "rope_theta is -1"),
            ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "'linear'"),
            ({"rope_parameters": None, "rope_scaling": {"type": "dynamic"}}, "'dynamic'"),
            ({"rope_parameters": "default"}, "expected a JSON object"),
            ({"rope_parameters": {"partial_rotary_factor": 1.5}}, "expected (0, 1]"),
            ({"rope_parameters": {"partial_rotary_factor": 0.2}}, "rotates 3 dimensions"),
            ({"rope_parameters": {"partial_rotary_factor": 0.1}}, "rotates 1 dimensions"),
            ({"rope_parameters": {"partial_rotary_factor": True}}, "partial_rotary_factor is True"),
            ({"qk_layernorm": "yes"}, "qk_layernorm is 'yes'"),
            ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1"),
            ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
            ({"bos_token_id": 1.0}, "bos_token_id is 1.0"),
        ],
    )
    def test_contradictory(self, tmp_path: Path, overrides: dict[str, Any], found: str) -> None:
        path = write_huggingface(tmp_path, CONFIG, TENSORS, TOKENIZER, **overrides)
        assert_refused(path, str(path / "config.json"), found, error=ConfigError)

    @pytest.mark.parametrize(
        "contents", [b"", b"{", b"[]", b"3", b"null", b'{"a": 1}}', b"\xff\xfe", b"[" * 100_000]
    )
    def test_malformed(self, tmp_path: Path, contents: bytes) -> None:
        write_huggingface(tmp_path, CONFIG, TENSORS, TOKENIZER)
        (tmp_path / "config.json").write_bytes(contents)
        assert_refused(tmp_path, str(tmp_path / "config.json"), error=ConfigError)


class TestTensors:
    @pytest.mark.parametrize("shards", [1, 2])
    def test_missing(self, tmp_path: Path, shards: int) -> None:
        fewer = {name: tensor for name, tensor in TENSORS.items() if name not in (UP, GAMMA)}
        path = write_huggingface(tmp_path, CONFIG, fewer, TOKENIZER, shards)
        assert_refused(path, GAMMA, "missing", "1 more", "[64]")

    @pytest.mark.parametrize("shards", [1, 2])
    def test_left_over(self, tmp_path: Path, shards: int) -> None:
        more = TENSORS | {"model.layers.2.input_layernorm.weight": torch.ones(64)}
        path = write_huggingface(tmp_path, CONFIG, more, TOKENIZER, shards)
        assert_refused(path, ".safetensors", "model.layers.2.input_layernorm.weight", "does not belong")

    def test_head_of_an_untied_model_missing(self, tmp_path: Path) -> None:
        fewer = {name: tensor for name, tensor in TENSORS.items() if name != "lm_head.weight"}
        assert_refused(write_huggingface(tmp_path, CONFIG, fewer, TOKENIZER), "lm_head.weight", "missing")

    @pytest.mark.parametrize(
        "tensor", [TENSORS[UP][:-1], TENSORS[UP].t(), TENSORS[UP].flatten(), TENSORS[UP][None]]
    )
    def test_misshapen(self, tmp_path: Path, tensor: torch.Tensor) -> None:
        path = write_huggingface(tmp_path, CONFIG, TENSORS | {UP: tensor.contiguous()}, TOKENIZER)
        assert_refused(path, "model.safetensors", UP, f"has shape {list(tensor.shape)}", "[192, 64]")

    @pytest.mark.parametrize(
        "dtype", [torch.float64, torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64]
    )
    def test_wrong_dtype(self, tmp_path: Path, dtype: torch.dtype) -> None:
        path = write_huggingface(tmp_path, CONFIG, TENSORS | {UP: TENSORS[UP].to(dtype)}, TOKENIZER)
        assert_refused(path, "model.safetensors", "dtype")

    def test_vocabulary_larger_than_the_embedding(self, tmp_path: Path) -> None:
        config = small_config(vocab_size=4000)
        path = write_huggingface(tmp_path, config, random_tensors(config), TOKENIZER)
        assert_refused(path, "4096 pieces", "4000 rows")

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("name", [UP, GAMMA, "model.embed_tokens.weight", "lm_head.weight"])
    def test_not_finite(self, tmp_path: Path, name: str, value: float) -> None:
        broken = TENSORS[name].clone()
        broken.view(-1)[-1] = value
        checkpoint = open_checkpoint(
            write_huggingface(tmp_path, CONFIG, TENSORS | {name: broken}, TOKENIZER, shards=2)
        )
        with pytest.raises(CheckpointError) as caught:
            load_weights(checkpoint, dtype=torch.float32, device=CPU)
        assert f"tensor {name} has a NaN or an infinity" in str(caught.value)
        assert str(checkpoint.tensors[name].source) in str(caught.value)
        weights = load_weights(checkpoint, dtype=torch.float32, device=CPU, check_finite=False)
        loaded = {
            UP: weights.layers[1].w_up,
            GAMMA: weights.layers[0].input_gamma,
            "model.embed_tokens.weight": weights.embedding,
            "lm_head.weight": weights.lm_head,
        }
        assert not torch.isfinite(loaded[name].flatten()[-1])

    def test_overflow_in_a_narrower_dtype_is_not_finite(self, tmp_path: Path) -> None:
        large = random_tensors(CONFIG)
        large[UP][0, 0] = 1e6
        checkpoint = open_checkpoint(write_huggingface(tmp_path, CONFIG, large, TOKENIZER))
        load_weights(checkpoint, dtype=torch.bfloat16, device=CPU)
        with pytest.raises(CheckpointError, match="infinity in float16"):
            load_weights(checkpoint, dtype=torch.float16, device=CPU)


class TestFiles:
    def test_nothing_there(self, tmp_path: Path) -> None:
        assert_refused(tmp_path / "none", "none", "no such file")
        assert_refused(tmp_path, str(tmp_path), "config.json")

    def test_no_tokenizer(self, tmp_path: Path) -> None:
        write_huggingface(tmp_path, CONFIG, TENSORS, TOKENIZER)
        (tmp_path / "tokenizer.model").unlink()
        assert_refused(tmp_path, "tokenizer.model", "missing")

    @pytest.mark.parametrize("contents", [b"", b"no model", TOKENIZER[:1000]])
    def test_broken_tokenizer(self, tmp_path: Path, contents: bytes) -> None:
        assert_refused(
            write_huggingface(tmp_path, CONFIG, TENSORS, contents),
            "tokenizer.model",
            "not a sentencepiece model",
            error=TokenizerError,
        )

    def test_no_weights(self, tmp_path: Path) -> None:
        write_huggingface(tmp_path, CONFIG, TENSORS, TOKENIZER)
        (tmp_path / "model.safetensors").unlink()
        assert_refused(tmp_path, "model.safetensors", "model.safetensors.index.json")

    def test_no_shard(self, tmp_path: Path) -> None:
        write_huggingface(tmp_path, CONFIG, TENSORS, TOKENIZER, shards=2)
        (tmp_path / "model-00002-of-00002.safetensors").unlink()
        assert_refused(tmp_path, "index.json", "model-00002-of-00002.safetensors", "not there")

    def test_shards_swapped(self, tmp_path: Path) -> None:
        write_huggingface(tmp_path, CONFIG, TENSORS, TOKENIZER, shards=2)
        first, second = (tmp_path / f"model-0000{shard}-of-00002.safetensors" for shard in (1, 2))
        first.rename(tmp_path / "aside")
        second.rename(first)
        (tmp_path / "aside").rename(second)
        assert_refused(tmp_path, first.name, "which the index puts there")

    def test_tensor_beside_the_index(self, tmp_path: Path) -> None:
        write_huggingface(tmp_path, CONFIG, TENSORS, TOKENIZER, shards=2)
        index = tmp_path / "model.safetensors.index.json"
        weight_map = json.loads(index.read_text())["weight_map"]
        del weight_map[UP]
        rewrite_json(index, weight_map=weight_map)
        assert_refused(tmp_path, UP, "not in the index")

    @pytest.mark.parametrize("weight_map", [None, {}, [], "model.safetensors", 3])
    def test_index_without_a_map(self, tmp_path: Path, weight_map: object) -> None:
        write_huggingface(tmp_path, CONFIG, TENSORS, TOKENIZER, shards=2)
        rewrite_json(tmp_path / "model.safetensors.index.json", weight_map=weight_map)
        assert_refused(tmp_path, "index.json", "weight_map")

    @pytest.mark.parametrize("contents", [b"", b"[]", b"\xff", b"[" * 100_000])
    @pytest.mark.parametrize("name", ["model.safetensors.index.json", "tokenizer_config.json"])
    def test_malformed_json(self, tmp_path: Path, name: str, contents: bytes) -> None:
        write_huggingface(tmp_path, CONFIG, TENSORS, TOKENIZER, shards=2)
        (tmp_path / name).write_bytes(contents)
        assert_refused(tmp_path, str(tmp_path / name))


class TestTokenizerSettings:
    def open_with(self, path: Path, **files: dict[str, Any]) -> Checkpoint:
        write_huggingface(path, CONFIG, TENSORS, TOKENIZER)
        for name, contents in files.items():
            (path / f"{name}.json").write_text(json.dumps(contents))
        return open_checkpoint(path)

    TEMPLATE = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {}}]}

    @pytest.mark.parametrize(
        ("files", "expected"),
        [
            ({}, False),
            ({"tokenizer_config": {"add_bos_token": True}}, True),
            (
                {"tokenizer_config": {"add_bos_token": False}, "tokenizer": {"post_processor": TEMPLATE}},
                False,
            ),
            ({"tokenizer": {"post_processor": TEMPLATE}}, True),
            ({"tokenizer": {"post_processor": {"type": "Sequence", "processors": [TEMPLATE]}}}, True),
            ({"tokenizer": {"post_processor": {"type": "ByteLevel"}}}, False),
            ({"tokenizer": {"post_processor": None}}, False),
        ],
    )
    def test_add_bos(self, tmp_path: Path, files: dict[str, Any], expected: bool) -> None:
        tokenizer = self.open_with(tmp_path, **files).tokenizer
        assert tokenizer.add_bos is expected
        assert (tokenizer.encode("text")[0] == tokenizer.bos_id) is expected

    @pytest.mark.parametrize("bos", ["|ENDOFTEXT|", {"content": "|ENDOFTEXT|", "special": True}])
    def test_bos_by_name(self, tmp_path: Path, bos: object) -> None:
        tokenizer = self.open_with(tmp_path, tokenizer_config={"bos_token": bos}).tokenizer
        assert tokenizer.piece(tokenizer.bos_id) == "|ENDOFTEXT|"

    @pytest.mark.parametrize("bos", ["<nowhere>", "|ENDOFTEXT", "", "\ud800", {"content": "|ENDOFTEXT"}])
    def test_a_bos_that_is_not_a_piece_counts_as_not_named(self, tmp_path: Path, bos: object) -> None:
        settings = {"bos_token": bos, "eos_token": bos, "add_bos_token": True}
        tokenizer = self.open_with(tmp_path, tokenizer_config=settings).tokenizer
        assert tokenizer.piece(tokenizer.bos_id) == tokenizer.piece(tokenizer.eos_id) == "|ENDOFTEXT|"
        assert tokenizer.special_tokens == {"bos_token": "|ENDOFTEXT|", "eos_token": "|ENDOFTEXT|"}
        assert tokenizer.encode("text")[0] == tokenizer.bos_id

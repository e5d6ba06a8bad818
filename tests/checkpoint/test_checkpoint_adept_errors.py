"""Adept's release: what its arguments mean, and each assert_refused with the file and what was expected."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import (
    ITERATION,
    adept_args,
    adept_files,
    adept_model,
    assert_holds,
    assert_refused,
    random_tensors,
    rank_path,
    rezipped,
    saved,
    small_config,
    write_adept,
    write_directory,
    write_one_rank,
    write_tar,
)
from small_checkpoint import CONFIG, TENSORS, TOKENIZER

from adept_fast.checkpoint import CheckpointError, open_checkpoint
from adept_fast.checkpoint.adept import is_adept
from adept_fast.config import ConfigError

UP = "model.layers.1.mlp.dense_h_to_4h.weight"
Q_GAMMA = "model.layers.1.self_attn.q_layernorm.weight"
ADEPT_UP = "language_model.encoder.layers.1.mlp.dense_h_to_4h.weight"


class TestArguments:
    def test_config(self, tmp_path: Path) -> None:
        config = small_config(rope_theta=10000.0, layer_norm_eps=1e-6, partial_rotary_factor=0.25)
        path = write_adept(tmp_path, config, random_tensors(config), TOKENIZER)
        assert open_checkpoint(path).config == config

    def test_feed_forward_of_four_times_the_width(self, tmp_path: Path) -> None:
        config = small_config(intermediate_size=256)
        path = write_adept(tmp_path, config, random_tensors(config), TOKENIZER, ffn_hidden_size=None)
        assert open_checkpoint(path).config.intermediate_size == 256

    def test_vocabulary_of_the_embedding(self, tmp_path: Path) -> None:
        path = write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER, ranks=2, padded_vocab_size=...)
        assert open_checkpoint(path).config.vocab_size == 4160

    @pytest.mark.parametrize(
        "name",
        [
            "kv_channels",
            "sq_relu",
            "pos_emb",
            "attn_span_type",
            "tensor_model_parallel_size",
            "untie_embeddings",
        ],
    )
    def test_not_every_argument_is_needed(self, tmp_path: Path, name: str) -> None:
        path = write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER, **{name: ...})
        assert open_checkpoint(path).config == CONFIG

    @pytest.mark.parametrize(
        "name",
        [
            "hidden_size",
            "num_layers",
            "num_attention_heads",
            "max_position_embeddings",
            "layernorm_epsilon",
            "rotary_emb_base",
            "rotary_pct",
            "qk_layernorm",
        ],
    )
    def test_missing(self, tmp_path: Path, name: str) -> None:
        path = write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER, **{name: ...})
        assert_refused(path, rank_path(0), f"args.{name} is missing", "expected")

    @pytest.mark.parametrize(
        ("name", "value", "allowed"),
        [
            ("hidden_size", "64", "integer"),
            ("hidden_size", 64.0, "integer"),
            ("hidden_size", 0, "integer"),
            ("num_layers", True, "integer"),
            ("num_layers", None, "integer"),
            ("num_attention_heads", -4, "integer"),
            ("num_attention_heads", [4], "integer"),
            ("ffn_hidden_size", "4h", "integer"),
            ("padded_vocab_size", 2**40, "integer"),
            ("max_position_embeddings", 128.5, "integer"),
            ("layernorm_epsilon", "1e-5", "positive finite number"),
            ("layernorm_epsilon", 0.0, "positive finite number"),
            ("rotary_emb_base", float("inf"), "positive finite number"),
            ("rotary_emb_base", 10**400, "positive finite number"),
            ("rotary_emb_base", True, "positive finite number"),
            ("rotary_pct", float("nan"), "positive finite number"),
            ("rotary_pct", -0.5, "positive finite number"),
            ("kv_channels", 32, "64 / 4"),
            ("sq_relu", False, "True"),
            ("sq_relu", None, "True"),
            ("sq_relu", 1, "True"),
            ("pos_emb", "learned", "'rotary'"),
            ("attn_span_type", "local_span", "'global_span'"),
            ("apply_residual_connection_post_layernorm", True, "False"),
            ("pipeline_model_parallel_size", 2, "1, as"),
            ("qk_layernorm", True, "'weights_per_layer'"),
            ("qk_layernorm", "other", "'none'"),
            ("qk_layernorm", ["none"], "'none'"),
            ("qk_layernorm", "weights_per_attention_head_and_layer", "one q/k LayerNorm a layer"),
            ("untie_embeddings", "yes", "true or false"),
            ("untie_embeddings", False, "word_embeddings_for_head is there"),
        ],
    )
    def test_unusable(self, tmp_path: Path, name: str, value: object, allowed: str) -> None:
        path = write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER, **{name: value})
        assert_refused(path, rank_path(0), f"args.{name} is ", "expected", allowed)

    @pytest.mark.parametrize(
        ("changes", "found"),
        [
            ({"num_attention_heads": 3, "kv_channels": None}, "not a multiple"),
            ({"rotary_pct": 1.5}, "partial_rotary_factor"),
            ({"rotary_pct": 0.01}, "partial_rotary_factor"),
            ({"num_layers": 10**6}, "num_hidden_layers"),
        ],
    )
    def test_contradictory(self, tmp_path: Path, changes: dict[str, Any], found: str) -> None:
        path = write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER, **changes)
        assert_refused(path, rank_path(0), "args", found, error=ConfigError)

    def test_none_at_all(self, tmp_path: Path) -> None:
        contents = {"model": adept_model(TENSORS), "args": argparse.Namespace()}
        assert_refused(write_one_rank(tmp_path, contents, TOKENIZER), "args.num_layers is missing")

    def test_long_values_are_shortened(self, tmp_path: Path) -> None:
        path = write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER, hidden_size="x" * 10**6)
        assert len(assert_refused(path, "args.hidden_size")) < 1000

    def test_ranks_that_disagree(self, tmp_path: Path) -> None:
        path = write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER, ranks=2)
        other = adept_args(CONFIG, ranks=2, rotary_emb_base=10000)
        contents = saved({"model": adept_model(TENSORS, 1, 2), "args": other})
        (path / rank_path(1)).write_bytes(contents)
        assert_refused(path, rank_path(1), "another model")

    @pytest.mark.parametrize("ranks", [1, 2])
    def test_no_qk_layernorm(self, tmp_path: Path, ranks: int) -> None:
        config = small_config(qk_layernorm=False)
        tensors = random_tensors(config)
        path = write_adept(tmp_path, config, tensors, TOKENIZER, ranks=ranks)
        checkpoint = open_checkpoint(path)
        assert checkpoint.config == config
        assert_holds(checkpoint, tensors)

    @pytest.mark.parametrize("ranks", [1, 2])
    def test_qk_layernorm_of_each_rank_where_all_are_equal(self, tmp_path: Path, ranks: int) -> None:
        mode = "weights_per_tensor_parallel_rank_and_layer"
        path = write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER, ranks=ranks, qk_mode=mode)
        assert_holds(open_checkpoint(path), TENSORS)

    def test_qk_layernorm_of_each_rank_where_they_differ(self, tmp_path: Path) -> None:
        mode = "weights_per_tensor_parallel_rank_and_layer"
        path = write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER, ranks=2, qk_mode=mode)
        other = TENSORS | {Q_GAMMA: TENSORS[Q_GAMMA] + 1}
        contents = {"model": adept_model(other, 1, 2), "args": adept_args(CONFIG, 2, mode)}
        (path / rank_path(1)).write_bytes(saved(contents))
        assert_refused(path, rank_path(1), mode, "q_layernorm.weight", "equal")


class TestTiedEmbeddings:
    config = small_config(tie_word_embeddings=True)
    tensors = random_tensors(config)

    @pytest.mark.parametrize("untie", [None, False, ...])
    def test_tied(self, tmp_path: Path, untie: object) -> None:
        path = write_adept(tmp_path, self.config, self.tensors, TOKENIZER, ranks=2, untie_embeddings=untie)
        checkpoint = open_checkpoint(path)
        assert checkpoint.config.tie_word_embeddings
        assert "lm_head.weight" not in checkpoint.tensors
        assert_holds(checkpoint, self.tensors)

    def test_untied_without_a_head(self, tmp_path: Path) -> None:
        path = write_adept(tmp_path, self.config, self.tensors, TOKENIZER, untie_embeddings=True)
        assert_refused(path, "lm_head.weight", "missing")


class TestRanks:
    def test_gap(self, tmp_path: Path) -> None:
        path = write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER, ranks=4)
        (path / "iter_0001251/mp_rank_02").rename(tmp_path / "elsewhere")
        assert_refused(path, "mp_rank_02 is missing")

    def test_last_one_missing(self, tmp_path: Path) -> None:
        path = write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER, ranks=4)
        (path / "iter_0001251/mp_rank_03").rename(tmp_path / "elsewhere")
        assert_refused(path, "args.tensor_model_parallel_size is 4", "3 mp_rank_* directories")

    def test_empty_rank(self, tmp_path: Path) -> None:
        path = write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER, ranks=2)
        (path / rank_path(1)).unlink()
        assert_refused(path, "mp_rank_01", "model_optim_rng.pt is missing")

    def test_tensor_that_one_rank_lacks(self, tmp_path: Path) -> None:
        path = write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER, ranks=2)
        fewer = {name: tensor for name, tensor in TENSORS.items() if name != UP}
        contents = saved({"model": adept_model(fewer, 1, 2), "args": adept_args(CONFIG, 2)})
        (path / rank_path(1)).write_bytes(contents)
        assert_refused(path, rank_path(1), ADEPT_UP)

    @pytest.mark.parametrize("change", ["shape", "dtype"])
    def test_shards_of_different_kinds(self, tmp_path: Path, change: str) -> None:
        path = write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER, ranks=2)
        changed = TENSORS[UP][:-2] if change == "shape" else TENSORS[UP].float()
        contents = saved({"model": adept_model(TENSORS | {UP: changed}, 1, 2), "args": adept_args(CONFIG, 2)})
        (path / rank_path(1)).write_bytes(contents)
        assert_refused(path, rank_path(1), ADEPT_UP, "[96, 64]", "float16")

    @pytest.mark.parametrize("name", ["model.layers.0.self_attn.dense.bias", "model.final_layernorm.weight"])
    def test_whole_tensors_that_differ(self, tmp_path: Path, name: str) -> None:
        path = write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER, ranks=2)
        other = TENSORS | {name: TENSORS[name] + 1}
        contents = saved({"model": adept_model(other, 1, 2), "args": adept_args(CONFIG, 2)})
        (path / rank_path(1)).write_bytes(contents)
        stored = open_checkpoint(path).tensors[name]
        with pytest.raises(CheckpointError, match=r"mp_rank_01.*not equal.*mp_rank_00"):
            stored.read()


class TestNames:
    def open_with(self, path: Path, change: dict[str, Any]) -> Path:
        model = adept_model(TENSORS) | change
        return write_one_rank(path, {"model": model, "args": adept_args(CONFIG)}, TOKENIZER)

    def test_unknown(self, tmp_path: Path) -> None:
        path = self.open_with(tmp_path, {"pooler": {"weight": torch.ones(3)}})
        assert_refused(path, "pooler.weight", "does not belong")

    def test_missing(self, tmp_path: Path) -> None:
        fewer = {name: tensor for name, tensor in TENSORS.items() if name != UP}
        path = write_one_rank(tmp_path, {"model": adept_model(fewer), "args": adept_args(CONFIG)}, TOKENIZER)
        assert_refused(path, UP, "missing", "[192, 64]")

    def test_no_embedding(self, tmp_path: Path) -> None:
        assert_refused(self.open_with(tmp_path, {"language_model": {}}), "word_embeddings.weight", "missing")

    def test_misshapen(self, tmp_path: Path) -> None:
        path = write_adept(tmp_path, CONFIG, TENSORS | {UP: TENSORS[UP][:-1]}, TOKENIZER)
        assert_refused(path, ADEPT_UP, "[191, 64]", "[192, 64]")

    def test_two_of_one_name(self, tmp_path: Path) -> None:
        twice = {"a": {"b.c": torch.ones(1)}, "a.b": {"c": torch.ones(1)}}
        assert_refused(self.open_with(tmp_path, twice), "a.b.c", "two tensors")

    def test_two_of_one_meaning(self, tmp_path: Path) -> None:
        assert_refused(self.open_with(tmp_path, {UP: torch.ones(1)}), UP, "another one")

    @pytest.mark.parametrize("value", [None, "text", [torch.ones(1)], 3.0])
    def test_no_tensor(self, tmp_path: Path, value: object) -> None:
        assert_refused(self.open_with(tmp_path, {"extra": value}), "extra", "expected a tensor")

    @pytest.mark.parametrize("key", [3, "a\nb", b"a"])
    def test_odd_keys(self, tmp_path: Path, key: object) -> None:
        assert_refused(self.open_with(tmp_path, {key: torch.ones(1)}), "key", repr(key))

    def test_an_empty_tensor(self, tmp_path: Path) -> None:
        assert_refused(self.open_with(tmp_path, {"odd": torch.ones(0, 3)}), "tensor odd")

    def test_a_sparse_tensor(self, tmp_path: Path) -> None:
        """Some versions of torch build it without its values, and others refuse to."""
        assert_refused(self.open_with(tmp_path, {"odd": torch.ones(2, 2).to_sparse()}), "model_optim_rng.pt")

    def test_wrong_dtype(self, tmp_path: Path) -> None:
        path = write_adept(tmp_path, CONFIG, TENSORS | {UP: TENSORS[UP].double()}, TOKENIZER)
        assert_refused(path, ADEPT_UP, "float64", "float32, float16 or bfloat16")

    def test_endless_nesting(self, tmp_path: Path) -> None:
        loop: dict[str, Any] = {}
        loop["again"] = loop
        assert_refused(self.open_with(tmp_path, {"loop": loop}), "one dict twice")

    def test_doubling_nesting(self, tmp_path: Path) -> None:
        nested: dict[str, Any] = {}
        for _ in range(64):
            nested = {"left": nested, "right": nested}
        assert_refused(self.open_with(tmp_path, {"nested": nested}), "one dict twice")


class TestFiles:
    @pytest.mark.parametrize("contents", ["list", "no args", "no model", "args of a dict", "model of a list"])
    def test_other_contents(self, tmp_path: Path, contents: str) -> None:
        model, args = adept_model(TENSORS), adept_args(CONFIG)
        given = {
            "list": [model, args],
            "no args": {"model": model},
            "no model": {"args": args},
            "args of a dict": {"model": model, "args": vars(args)},
            "model of a list": {"model": [model], "args": args},
        }[contents]
        assert_refused(write_one_rank(tmp_path, given, TOKENIZER), rank_path(0), "expected a")

    def test_legacy_format(self, tmp_path: Path) -> None:
        contents = {"model": adept_model(TENSORS), "args": adept_args(CONFIG)}
        path = write_one_rank(tmp_path, contents, TOKENIZER, _use_new_zipfile_serialization=False)
        assert_refused(path, rank_path(0), "not a zip")

    @pytest.mark.parametrize("contents", [b"", b"PK\x03\x04", pickle.dumps({}), b"\0" * 100])
    def test_no_zip(self, tmp_path: Path, contents: bytes) -> None:
        path = write_directory(tmp_path, {rank_path(0): contents, "adept_vocab.model": TOKENIZER})
        assert_refused(path, rank_path(0), "not a zip")

    def test_big_endian(self, tmp_path: Path) -> None:
        files = adept_files(CONFIG, TENSORS, TOKENIZER)
        files[rank_path(0)] = rezipped(files[rank_path(0)], {"byteorder": b"big"})
        assert_refused(write_directory(tmp_path, files), rank_path(0), "'big'-endian")

    def test_compressed_record(self, tmp_path: Path) -> None:
        files = adept_files(CONFIG, TENSORS, TOKENIZER)
        files[rank_path(0)] = rezipped(files[rank_path(0)], compression=zipfile.ZIP_DEFLATED)
        assert_refused(write_directory(tmp_path, files), rank_path(0), "compressed or encrypted")

    @pytest.mark.parametrize(("mode", "name"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
    def test_compressed_tar(self, tmp_path: Path, mode: str, name: str) -> None:
        path = write_tar(tmp_path / "x.tar", {"iter_0001251/a": b"a", "adept_vocab.model": b"b"}, mode=mode)
        assert_refused(path, str(path), name, "in place")

    @pytest.mark.parametrize("text", ["", "seven", "-7", "1\n2", "²", "9" * 100])
    def test_tracker_without_a_number(self, tmp_path: Path, text: str) -> None:
        path = write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER)
        (path / "latest_checkpointed_iteration.txt").write_text(text)
        assert_refused(path, "latest_checkpointed_iteration.txt")

    def test_tracker_of_another_iteration(self, tmp_path: Path) -> None:
        path = write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER)
        (path / "latest_checkpointed_iteration.txt").write_text(str(ITERATION + 1))
        assert_refused(path, "latest_checkpointed_iteration.txt", "iter_0001252", "not there")

    def test_several_iterations_without_a_tracker(self, tmp_path: Path) -> None:
        (tmp_path / "iter_0000001").mkdir()
        (tmp_path / "iter_0000002").mkdir()
        assert_refused(tmp_path, str(tmp_path), "2 iter_* directories", "latest_checkpointed_iteration.txt")

    def test_iteration_without_ranks(self, tmp_path: Path) -> None:
        (tmp_path / "iter_0000001").mkdir()
        assert_refused(tmp_path, "iter_0000001", "no mp_rank_*")

    def test_tar_of_two_models(self, tmp_path: Path) -> None:
        files = {"a/iter_0000001/mp_rank_00/x": b"", "b/iter_0000001/mp_rank_00/x": b""}
        assert_refused(write_tar(tmp_path / "x.tar", files, top=""), "x.tar", "2 of its folders")

    def test_tar_of_something_else(self, tmp_path: Path) -> None:
        assert_refused(write_tar(tmp_path / "x.tar", {"a": b"b"}), "x.tar", "0 of its folders")

    def test_tar_with_a_file_twice(self, tmp_path: Path) -> None:
        files = adept_files(CONFIG, TENSORS, TOKENIZER)
        twice = files | {"./" + rank_path(0): files[rank_path(0)]}
        assert_refused(write_tar(tmp_path / "x.tar", twice, top=""), rank_path(0), "2 times")

    def test_what_open_checkpoint_accepts(self, tmp_path: Path) -> None:
        empty = tmp_path / "empty"
        empty.mkdir()
        (tmp_path / "notes.txt").write_text("no checkpoint")
        assert not is_adept(empty)
        for path in (empty, tmp_path / "notes.txt"):
            assert_refused(path, str(path), "config.json", "latest_checkpointed_iteration.txt", "tar")
        assert_refused(tmp_path / "nothing", "no such file")

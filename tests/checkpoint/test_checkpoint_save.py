"""Writing checkpoints: nothing changes on the way, others can read it, and a failure leaves nothing."""

from __future__ import annotations

import argparse
import dataclasses
import json
import weakref
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_adept, write_huggingface
from safetensors import safe_open
from saving import assert_same, checkpoint_of
from tokenizers_for_tests import train
from transformers import AutoTokenizer, PersimmonForCausalLM

from adept_fast.checkpoint import CheckpointError, open_checkpoint, weight_files
from adept_fast.checkpoint.base import StoredTensor
from adept_fast.checkpoint.convert import convert
from adept_fast.checkpoint.save import save_adept, save_huggingface
from adept_fast.config import PersimmonConfig
from adept_fast.tokenizer.tokenizer import TokenizerError

CONFIGS = {
    "usual": small_config(),
    "no qk_layernorm": small_config(qk_layernorm=False),
    "tied": small_config(tie_word_embeddings=True),
    "head_dim 80": small_config(hidden_size=160, num_attention_heads=2),
    "factor 0.25": small_config(partial_rotary_factor=0.25),
    "theta 10000.5": small_config(rope_theta=10000.5, layer_norm_eps=1e-6),
    "whole head": small_config(partial_rotary_factor=1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        *((config, torch.float16) for config in CONFIGS.values()),
        (CONFIGS["usual"], torch.bfloat16),
        (CONFIGS["usual"], torch.float32),
    ],
    ids=[*CONFIGS, "bfloat16", "float32"],
)
def test_round_trip_through_adepts_format(
    tmp_path: Path, config: PersimmonConfig, dtype: torch.dtype
) -> None:
    source = checkpoint_of(tmp_path / "source", config, dtype)
    save_adept(source, tmp_path / "adept")
    adept = open_checkpoint(tmp_path / "adept")
    assert adept.format == "adept"
    assert_same(adept, source)
    save_huggingface(adept, tmp_path / "huggingface")
    back = open_checkpoint(tmp_path / "huggingface")
    assert back.format == "huggingface"
    assert_same(back, source)


def test_round_trip_from_adepts_release_of_two_ranks(tmp_path: Path) -> None:
    config = CONFIGS["usual"]
    tensors = random_tensors(config, dtype=torch.bfloat16)
    release = write_adept(tmp_path / "release.tar", config, tensors, demo_tokenizer(), ranks=2, tar=True)
    convert(release, tmp_path / "huggingface", progress=False)
    convert(tmp_path / "huggingface", tmp_path / "adept", progress=False)
    assert_same(open_checkpoint(tmp_path / "adept"), open_checkpoint(release))


class TestHuggingFace:
    @pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
    def test_transformers_loads_the_same(self, tmp_path: Path, config: PersimmonConfig) -> None:
        source = checkpoint_of(tmp_path / "source", config)
        save_huggingface(source, tmp_path / "saved", max_shard_bytes=300_000)
        model, info = PersimmonForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert model.dtype == torch.float16
        state = model.state_dict()
        for name, tensor in source.tensors.items():
            assert torch.equal(state[name], tensor.read()), name
        assert model.config.rope_parameters == {
            "rope_type": "default",
            "rope_theta": config.rope_theta,
            "partial_rotary_factor": config.partial_rotary_factor,
        }
        for field in dataclasses.fields(PersimmonConfig):
            if field.name not in ("rope_theta", "partial_rotary_factor"):
                assert getattr(model.config, field.name) == getattr(config, field.name), field.name
        assert (model.generation_config.bos_token_id, model.generation_config.eos_token_id) == (1, 1)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
        assert tokenizer("Hello, 你好")["input_ids"] == source.tokenizer.encode("Hello, 你好")

    def test_special_ids_come_from_the_tokenizer(self, tmp_path: Path) -> None:
        config = small_config(vocab_size=512, bos_token_id=1, eos_token_id=2)
        end = train(user_defined_symbols=("a", "b", "|ENDOFTEXT|"))
        write_huggingface(tmp_path / "source", config, random_tensors(config), end)
        save_huggingface(open_checkpoint(tmp_path / "source"), tmp_path / "saved")
        for name in ("config.json", "generation_config.json"):
            values = json.loads((tmp_path / "saved" / name).read_text())
            assert values["bos_token_id"] == 5
            # The config's own end token ends texts too.
            assert values["eos_token_id"] == (5 if name == "config.json" else [5, 2])

    @pytest.mark.parametrize(("limit", "files"), [(10**9, 1), (600_000, 3), (1, 36)])
    def test_shards(self, tmp_path: Path, limit: int, files: int) -> None:
        source = checkpoint_of(tmp_path / "source")
        saved = save_huggingface(source, tmp_path / "saved", max_shard_bytes=limit)
        written = sorted((tmp_path / "saved").glob("*.safetensors"))
        assert len(written) == len([name for name in saved.files if name.endswith(".safetensors")])
        index = tmp_path / "saved" / "model.safetensors.index.json"
        if files == 1:
            assert [file.name for file in written] == ["model.safetensors"]
            assert not index.exists()
        else:
            assert [file.name for file in written] == [
                f"model-{at:05d}-of-{files:05d}.safetensors" for at in range(1, files + 1)
            ]
            total = sum(tensor.read().nbytes for tensor in source.tensors.values())
            assert json.loads(index.read_text())["metadata"]["total_size"] == total
        for file in written:
            with safe_open(file, framework="pt") as opened:
                names = list(opened.keys())
                assert opened.metadata() == {"format": "pt"}
                size = sum(opened.get_tensor(name).nbytes for name in names)
                assert size <= limit or len(names) == 1
        assert_same(open_checkpoint(tmp_path / "saved"), source)

    def test_tensors_are_aligned_where_dtypes_are_mixed(self, tmp_path: Path) -> None:
        config = small_config(
            intermediate_size=193, num_hidden_layers=1
        )  # an odd number of float16 is no multiple of 4 bytes
        tensors = random_tensors(config, dtype=torch.float16)
        tensors["model.final_layernorm.bias"] = tensors["model.final_layernorm.bias"].float()
        source = open_checkpoint(write_huggingface(tmp_path / "source", config, tensors, demo_tokenizer()))
        save_huggingface(source, tmp_path / "saved")
        assert_same(open_checkpoint(tmp_path / "saved"), source)
        with (tmp_path / "saved" / "model.safetensors").open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        assert length % 8 == 0
        assert header["model.final_layernorm.bias"]["data_offsets"][0] % 4 == 0

    def test_tokenizer_settings_survive(self, tmp_path: Path) -> None:
        source = tmp_path / "source"
        checkpoint_of(source)
        settings = {"add_bos_token": True, "bos_token": ":"}
        (source / "tokenizer_config.json").write_text(json.dumps(settings))
        save_huggingface(open_checkpoint(source), tmp_path / "saved")
        tokenizer = open_checkpoint(tmp_path / "saved").tokenizer
        assert tokenizer.add_bos
        assert tokenizer.piece(tokenizer.bos_id or 0) == ":"

    def test_a_tokenizer_without_an_equal_is_refused_before_any_work(self, tmp_path: Path) -> None:
        config = small_config(vocab_size=512)
        write_huggingface(tmp_path / "source", config, random_tensors(config), train(model_type="bpe"))
        with pytest.raises(TokenizerError, match="its model type is BPE"):
            save_huggingface(open_checkpoint(tmp_path / "source"), tmp_path / "saved")
        assert [path.name for path in tmp_path.iterdir()] == ["source"]


class TestAdept:
    def test_torch_loads_it_safely_and_mapped(self, tmp_path: Path) -> None:
        source = checkpoint_of(tmp_path / "source", CONFIGS["head_dim 80"], torch.bfloat16)
        save_adept(source, tmp_path / "adept")
        file = tmp_path / "adept" / "iter_0000001" / "mp_rank_00" / "model_optim_rng.pt"
        with torch.serialization.safe_globals([argparse.Namespace]):
            contents = torch.load(file, weights_only=True, mmap=True)
        assert contents["iteration"] == 1
        model = contents["model"]
        embedding = model["language_model"]["embedding"]["word_embeddings"]["weight"]
        assert torch.equal(embedding, source.tensors["model.embed_tokens.weight"].read())
        assert torch.equal(
            model["word_embeddings_for_head"]["weight"], source.tensors["lm_head.weight"].read()
        )
        # Adept's code loads the encoder strictly, from one flat dict that has the rotary frequencies too.
        encoder = model["language_model"]["encoder"]
        names = {
            name.removeprefix("model.").replace(".self_attn.", ".self_attention.") for name in source.tensors
        }
        names -= {"embed_tokens.weight", "lm_head.weight"}
        assert encoder.keys() == names | {f"layers.{at}.self_attention.rotary_emb.inv_freq" for at in (0, 1)}
        frequencies = encoder["layers.1.self_attention.rotary_emb.inv_freq"]
        assert frequencies.shape == (20,)
        assert frequencies[1].item() == pytest.approx(25000 ** (-2 / 40))
        for tensor in encoder.values():
            assert tensor.data_ptr() % 64 == 0  # as torch.save aligns
            assert tensor.is_contiguous()

    def test_every_tensor_is_aligned(self, tmp_path: Path) -> None:
        tensors = {
            f"n{count}": StoredTensor(
                f"n{count}", (count,), torch.float32, "here", partial(torch.full, (count,), count / 8)
            )
            for count in range(1, 70)
        }
        contents = {name: weight_files.TensorReference(name) for name in tensors}
        weight_files.write_torch_file(
            tmp_path / "file.pt", contents, tensors, torch.float16, lambda _size: None
        )
        loaded = torch.load(tmp_path / "file.pt", weights_only=True, mmap=True)
        for name, tensor in tensors.items():
            assert torch.equal(loaded[name], tensor.read().half())
            assert loaded[name].data_ptr() % 64 == 0
        with zipfile.ZipFile(tmp_path / "file.pt") as archive:
            assert archive.testzip() is None

    def test_args(self, tmp_path: Path) -> None:
        save_adept(checkpoint_of(tmp_path / "source"), tmp_path / "adept")
        file = tmp_path / "adept" / "iter_0000001" / "mp_rank_00" / "model_optim_rng.pt"
        with torch.serialization.safe_globals([argparse.Namespace]):
            args = torch.load(file, weights_only=True)["args"]
        assert isinstance(args.rotary_emb_base, int)
        assert (args.rotary_emb_base, args.rotary_pct, args.kv_channels) == (25000, 0.5, 16)
        assert (args.qk_layernorm, args.untie_embeddings, args.sq_relu) == ("weights_per_layer", True, True)
        assert (args.padded_vocab_size, args.seq_length, args.fp16, args.bf16) == (4160, 128, True, False)

    def test_the_files_beside_it(self, tmp_path: Path) -> None:
        source = checkpoint_of(tmp_path / "source")
        saved = save_adept(source, tmp_path / "adept")
        assert saved.files.keys() == {
            "adept_vocab.model",
            "adept_vocab.vocab",
            "iter_0000001/mp_rank_00/model_optim_rng.pt",
            "latest_checkpointed_iteration.txt",
        }
        assert saved.total_bytes == sum(
            path.stat().st_size for path in (tmp_path / "adept").rglob("*") if path.is_file()
        )
        lines = (tmp_path / "adept" / "adept_vocab.vocab").read_text(encoding="utf-8").split("\n")
        assert len(lines) == source.tokenizer.vocab_size + 1
        assert lines[1] == "|ENDOFTEXT|\t0"
        assert lines[258].split("\t")[0] == source.tokenizer.piece(258)
        assert float(lines[258].split("\t")[1]) == pytest.approx(source.tokenizer.scores()[258], rel=1e-5)

    def test_what_the_format_cannot_say_is_noted(self, tmp_path: Path) -> None:
        source = tmp_path / "source"
        checkpoint_of(source)
        assert not save_adept(open_checkpoint(source), tmp_path / "plain").notes
        settings = {"add_bos_token": True, "bos_token": ":"}
        (source / "tokenizer_config.json").write_text(json.dumps(settings))
        notes = save_adept(open_checkpoint(source), tmp_path / "noted").notes
        assert len(notes) == 2
        assert "BOS is put before text" in notes[0]
        assert "BOS is ':'" in notes[1]


class TestDtype:
    @pytest.mark.parametrize("save", [save_huggingface, save_adept])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_weights_are_converted(
        self, tmp_path: Path, save: Callable[..., Any], dtype: torch.dtype
    ) -> None:
        source = checkpoint_of(tmp_path / "source", dtype=torch.float16)
        save(source, tmp_path / "saved", dtype=dtype)
        saved = open_checkpoint(tmp_path / "saved")
        assert saved.config == source.config
        for name, tensor in source.tensors.items():
            assert torch.equal(saved.tensors[name].read(), tensor.read().to(dtype)), name

    @pytest.mark.parametrize("save", [save_huggingface, save_adept])
    def test_overflow_is_an_error_and_leaves_nothing(self, tmp_path: Path, save: Callable[..., Any]) -> None:
        config = CONFIGS["usual"]
        tensors = random_tensors(config)
        tensors["model.final_layernorm.bias"][3] = -70000.0
        source = open_checkpoint(write_huggingface(tmp_path / "source", config, tensors, demo_tokenizer()))
        with pytest.raises(
            CheckpointError, match="model.final_layernorm.bias holds 70000; float16 ends at 65504"
        ):
            save(source, tmp_path / "saved", dtype=torch.float16)
        assert [path.name for path in tmp_path.iterdir()] == ["source"]
        save(source, tmp_path / "saved", dtype=torch.bfloat16)

    def test_numbers_that_were_not_finite_before_are_kept(self, tmp_path: Path) -> None:
        config = CONFIGS["usual"]
        tensors = random_tensors(config)
        tensors["model.final_layernorm.bias"][:2] = torch.tensor([float("inf"), float("nan")])
        source = open_checkpoint(write_huggingface(tmp_path / "source", config, tensors, demo_tokenizer()))
        save_huggingface(source, tmp_path / "saved", dtype=torch.float16)
        found = open_checkpoint(tmp_path / "saved").tensors["model.final_layernorm.bias"].read()
        assert torch.equal(found.isinf(), tensors["model.final_layernorm.bias"].isinf())
        assert torch.equal(found.isnan(), tensors["model.final_layernorm.bias"].isnan())

    def test_an_overflow_beside_a_nan_is_noticed(self, tmp_path: Path) -> None:
        config = CONFIGS["usual"]
        tensors = random_tensors(config)
        tensors["model.final_layernorm.bias"][:2] = torch.tensor([float("nan"), 70000.0])
        source = open_checkpoint(write_huggingface(tmp_path / "source", config, tensors, demo_tokenizer()))
        with pytest.raises(CheckpointError, match="holds 70000"):
            save_huggingface(source, tmp_path / "saved", dtype=torch.float16)

    def test_other_dtypes_are_refused(self, tmp_path: Path) -> None:
        source = checkpoint_of(tmp_path / "source")
        with pytest.raises(CheckpointError, match="the dtype is int8; expected float32, float16 or bfloat16"):
            save_huggingface(source, tmp_path / "saved", dtype=torch.int8)


def test_no_more_than_one_tensor_is_alive(tmp_path: Path) -> None:
    source = checkpoint_of(tmp_path / "source", dtype=torch.float32)
    alive: list[Any] = []
    most = 0

    def watched(tensor: StoredTensor) -> StoredTensor:
        def read() -> torch.Tensor:
            nonlocal most
            found = tensor.read().clone()
            alive.append(weakref.ref(found))
            most = max(most, sum(reference() is not None for reference in alive))
            return found

        return dataclasses.replace(tensor, read=read)

    tensors = {name: watched(tensor) for name, tensor in source.tensors.items()}
    spied = dataclasses.replace(source, tensors=tensors)
    save_huggingface(spied, tmp_path / "huggingface", dtype=torch.bfloat16)
    save_adept(spied, tmp_path / "adept")
    assert 1 <= most <= 2

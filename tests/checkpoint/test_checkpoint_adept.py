"""Adept's release: every layout it comes in, its shards, and that weights stay on disk until read."""

from __future__ import annotations

import argparse
import enum
import io
import os
import random
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import (
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
    write_huggingface,
    write_one_rank,
    write_tar,
)
from small_checkpoint import CONFIG, TENSORS, TOKENIZER

from adept_fast.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from adept_fast.tokenizer.tokenizer import Tokenizer, TokenizerError
from adept_fast.weights import load_weights

UP = "model.layers.1.mlp.dense_h_to_4h.weight"
Q_GAMMA = "model.layers.1.self_attn.q_layernorm.weight"


def flipped(contents: bytes, record: str) -> bytes:
    """A .pt with one bit changed in the middle of a zip record."""
    entry = zipfile.ZipFile(io.BytesIO(contents)).getinfo(record)
    end = contents.index(b"PK\x07\x08", entry.header_offset)  # the descriptor behind the record's bytes
    changed = bytearray(contents)
    changed[end - entry.file_size // 2 - 1] ^= 1
    return bytes(changed)


class TestLayouts:
    @pytest.mark.parametrize("ranks", [1, 2, 4])
    @pytest.mark.parametrize("tar", [False, True])
    def test_release(self, tmp_path: Path, ranks: int, tar: bool) -> None:
        path = write_adept(tmp_path / "release.tar", CONFIG, TENSORS, TOKENIZER, ranks=ranks, tar=tar)
        checkpoint = open_checkpoint(path)
        assert (checkpoint.format, checkpoint.path, checkpoint.config) == ("adept", path, CONFIG)
        assert_holds(checkpoint, TENSORS)

    @pytest.mark.parametrize(
        "inside", ["", "iter_0001251", "iter_0001251/mp_rank_00", "iter_0001251/mp_rank_01"]
    )
    def test_any_directory_of_a_release_means_the_whole_model(self, tmp_path: Path, inside: str) -> None:
        write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER, ranks=2)
        assert_holds(open_checkpoint(tmp_path / inside), TENSORS)

    def test_the_working_directory_as_a_dot(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER, ranks=2)
        monkeypatch.chdir(tmp_path / "iter_0001251/mp_rank_01")
        assert_holds(open_checkpoint("."), TENSORS)

    def test_directory_of_ranks_without_an_iteration(self, tmp_path: Path) -> None:
        files = adept_files(CONFIG, TENSORS, TOKENIZER, ranks=2)
        moved = {name.removeprefix("iter_0001251/"): contents for name, contents in files.items()}
        del moved["latest_checkpointed_iteration.txt"]
        assert_holds(open_checkpoint(write_directory(tmp_path, moved)), TENSORS)

    def test_single_iteration_without_tracker(self, tmp_path: Path) -> None:
        write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER)
        (tmp_path / "latest_checkpointed_iteration.txt").unlink()
        assert_holds(open_checkpoint(tmp_path), TENSORS)

    def test_tracker_chooses_the_iteration(self, tmp_path: Path) -> None:
        other = random_tensors(CONFIG, seed=9, dtype=torch.float16)
        write_adept(tmp_path, CONFIG, other, TOKENIZER)
        (tmp_path / "iter_0001251").rename(tmp_path / "iter_0000007")
        write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER)
        assert_holds(open_checkpoint(tmp_path), TENSORS)
        (tmp_path / "latest_checkpointed_iteration.txt").write_text("7\n")
        assert_holds(open_checkpoint(tmp_path), other)

    @pytest.mark.parametrize("top", ["", "./", "8b_base_model_release/", "./8b_base_model_release/"])
    def test_top_level_of_a_tar(self, tmp_path: Path, top: str) -> None:
        files = adept_files(CONFIG, TENSORS, TOKENIZER, ranks=2)
        assert_holds(open_checkpoint(write_tar(tmp_path / "x.tar", files, top=top)), TENSORS)

    def test_opening_writes_nothing(self, tmp_path: Path) -> None:
        path = write_adept(tmp_path / "release.tar", CONFIG, TENSORS, TOKENIZER, ranks=2, tar=True)
        before = path.read_bytes()
        for stored in open_checkpoint(path).tensors.values():
            stored.read().zero_()  # a tensor may be changed in memory, never the file under it
        assert list(tmp_path.iterdir()) == [path]
        assert path.read_bytes() == before

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_dtypes(self, tmp_path: Path, dtype: torch.dtype) -> None:
        tensors = random_tensors(CONFIG, dtype=dtype)
        checkpoint = open_checkpoint(write_adept(tmp_path, CONFIG, tensors, TOKENIZER, ranks=2))
        assert checkpoint.dtype == dtype
        assert_holds(checkpoint, tensors)

    def test_nan_survives_the_merge(self, tmp_path: Path) -> None:
        tensors = TENSORS | {Q_GAMMA: torch.full_like(TENSORS[Q_GAMMA], float("nan"))}
        assert_holds(open_checkpoint(write_adept(tmp_path, CONFIG, tensors, TOKENIZER, ranks=2)), tensors)

    def test_weights_equal_those_of_a_hugging_face_directory(self, tmp_path: Path) -> None:
        paths = (
            write_adept(tmp_path / "adept", CONFIG, TENSORS, TOKENIZER, ranks=4),
            write_huggingface(tmp_path / "hf", CONFIG, TENSORS, TOKENIZER),
        )
        cpu = torch.device("cpu")
        adept, hf = (load_weights(open_checkpoint(path), dtype=torch.float32, device=cpu) for path in paths)
        assert torch.equal(adept.embedding, hf.embedding)
        for ours, theirs in zip(adept.layers, hf.layers, strict=True):
            for name, tensor in vars(theirs).items():
                assert torch.equal(getattr(ours, name), tensor), name


class TestTokenizer:
    def test_conventions(self, tmp_path: Path) -> None:
        checkpoint = open_checkpoint(write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER))
        tokenizer = checkpoint.tokenizer
        assert tokenizer.add_bos is False
        assert tokenizer.encode("a b") == Tokenizer(TOKENIZER).encode("a b", add_bos=False)
        assert tokenizer.piece(tokenizer.eos_id) == "|ENDOFTEXT|"
        ids = (checkpoint.config.eos_token_id, checkpoint.config.bos_token_id)
        assert ids == (tokenizer.eos_id, tokenizer.bos_id) == (1, 1)

    @pytest.mark.parametrize("place", ["", "iter_0001251", "iter_0001251/mp_rank_00", ".."])
    def test_places(self, tmp_path: Path, place: str) -> None:
        root = write_adept(tmp_path / "release", CONFIG, TENSORS, TOKENIZER)
        (root / "adept_vocab.model").rename(root / place / "adept_vocab.model")
        assert_holds(open_checkpoint(root / "iter_0001251/mp_rank_00"), TENSORS)

    @pytest.mark.parametrize("tar", [False, True])
    def test_missing(self, tmp_path: Path, tar: bool) -> None:
        files = adept_files(CONFIG, TENSORS, TOKENIZER)
        del files["adept_vocab.model"]
        write = write_tar if tar else write_directory
        assert_refused(write(tmp_path / "release", files), "adept_vocab.model is missing")

    def test_beyond_the_release_is_not_looked_at(self, tmp_path: Path) -> None:
        root = write_adept(tmp_path / "a/release", CONFIG, TENSORS, TOKENIZER)
        (root / "adept_vocab.model").rename(tmp_path / "adept_vocab.model")
        assert_refused(root, "adept_vocab.model", "missing")

    def test_no_sentencepiece_model(self, tmp_path: Path) -> None:
        path = write_adept(tmp_path, CONFIG, TENSORS, b"nothing of the kind")
        assert_refused(path, "adept_vocab.model", "sentencepiece", error=TokenizerError)

    def test_absurdly_large(self, tmp_path: Path) -> None:
        path = write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER)
        os.truncate(path / "adept_vocab.model", 2**40)  # sparse
        assert_refused(path, "adept_vocab.model", f"{2**40} bytes", "at most")

    def test_more_pieces_than_rows(self, tmp_path: Path) -> None:
        config = small_config(vocab_size=4000)
        path = write_adept(tmp_path, config, random_tensors(config), TOKENIZER)
        assert_refused(path, "4096 pieces", "4000 rows")


class TestLaziness:
    def test_a_damaged_weight_is_found_when_read_and_not_before(self, tmp_path: Path) -> None:
        path = write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER, ranks=2)
        file = path / rank_path(1)
        plain = file.read_bytes()
        names = [name for name in adept_model_names() if not name.endswith("inv_freq")]
        for key, name in enumerate(adept_model_names()):
            if name not in names[::7]:
                continue
            file.write_bytes(flipped(plain, f"archive/data/{key}"))
            tensors = open_checkpoint(path).tensors
            broken = []
            for stored in tensors.values():
                try:
                    stored.read()
                except CheckpointError as error:
                    broken.append(str(error))
            assert len(broken) == 1
            assert str(file) in broken[0]
            assert f"tensor {name} is damaged" in broken[0]

    def test_damage_in_a_dropped_buffer_does_not_matter(self, tmp_path: Path) -> None:
        path = write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER)
        key = next(key for key, name in enumerate(adept_model_names()) if name.endswith("inv_freq"))
        file = path / rank_path(0)
        file.write_bytes(flipped(file.read_bytes(), f"archive/data/{key}"))
        assert_holds(open_checkpoint(path), TENSORS)

    def test_a_file_that_shrinks_after_opening(self, tmp_path: Path) -> None:
        path = write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER)
        stored = open_checkpoint(path).tensors["lm_head.weight"]
        os.truncate(path / rank_path(0), 5000)
        with pytest.raises(CheckpointError, match="memory-mapped"):
            stored.read()

    def test_one_rank_is_memory_mapped(self, tmp_path: Path) -> None:
        path = write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER)
        tensor = open_checkpoint(path).tensors["lm_head.weight"].read()
        maps = Path("/proc/self/maps")
        if not maps.exists():
            pytest.skip("the system does not list its mappings")
        [line] = [line for line in maps.read_text().splitlines() if "model_optim_rng.pt" in line]
        first, last = (int(bound, 16) for bound in line.split()[0].split("-"))
        assert first <= tensor.data_ptr() < last
        assert last - first < tensor.nbytes + 2**16  # that tensor, not the file


def adept_model_names() -> list[str]:
    """Adept's names in the order in which torch.save numbers their storages."""
    names = []

    def walk(prefix: str, values: dict[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                walk(f"{prefix}{key}.", value)
            else:
                names.append(prefix + key)

    walk("", adept_model(TENSORS))
    return names


class TestStorage:
    """Tensors that are not simply their storage."""

    def open_with(self, path: Path, **replaced: torch.Tensor) -> Checkpoint:
        model = adept_model(TENSORS)
        encoder = model["language_model"]["encoder"]
        for name, tensor in replaced.items():
            encoder[f"layers.1.mlp.{name}.weight"] = tensor
        return open_checkpoint(write_one_rank(path, {"model": model, "args": adept_args(CONFIG)}, TOKENIZER))

    def test_transposed_view(self, tmp_path: Path) -> None:
        view = TENSORS[UP].t().contiguous().t()
        assert not view.is_contiguous()
        assert_holds(self.open_with(tmp_path, dense_h_to_4h=view), TENSORS)

    def test_views_into_one_storage(self, tmp_path: Path) -> None:
        down = "model.layers.1.mlp.dense_4h_to_h.weight"
        both = torch.cat([TENSORS[UP].flatten(), TENSORS[down].flatten()])
        up, rest = both[: TENSORS[UP].numel()], both[TENSORS[UP].numel() :]
        views = {"dense_h_to_4h": up.view(192, 64), "dense_4h_to_h": rest.view(64, 192)}
        assert_holds(self.open_with(tmp_path, **views), TENSORS)

    def test_a_row_that_is_repeated(self, tmp_path: Path) -> None:
        row = TENSORS[UP][:1].clone()
        repeated = row.expand(192, 64)
        assert repeated.stride() == (0, 1)
        expected = TENSORS | {UP: repeated.contiguous()}
        assert_holds(self.open_with(tmp_path, dense_h_to_4h=repeated), expected)

    def test_parameters(self, tmp_path: Path) -> None:
        parameter = torch.nn.Parameter(TENSORS[UP])
        assert_holds(self.open_with(tmp_path, dense_h_to_4h=parameter), TENSORS)

    def test_saved_from_a_gpu(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
            files = adept_files(CONFIG, TENSORS, TOKENIZER)
        assert b"cuda:0" in files[rank_path(0)]
        assert_holds(open_checkpoint(write_directory(tmp_path, files)), TENSORS)

    @pytest.mark.parametrize("dropped", [".format_version", ".format_version byteorder .storage_alignment"])
    def test_rewritten_zip_without_alignment(self, tmp_path: Path, dropped: str) -> None:
        """As torch wrote them in 2023 (without those records), and as other zip programs pack them."""
        files = adept_files(CONFIG, TENSORS, TOKENIZER)
        files[rank_path(0)] = rezipped(files[rank_path(0)], without=tuple(dropped.split()))
        checkpoint = open_checkpoint(write_directory(tmp_path, files))
        assert_holds(checkpoint, TENSORS)
        for stored in checkpoint.tensors.values():
            assert stored.read().data_ptr() % stored.dtype.itemsize == 0


def test_namespace_is_admitted_by_this_module_alone(tmp_path: Path) -> None:
    path = write_adept(tmp_path, CONFIG, TENSORS, TOKENIZER)
    open_checkpoint(path)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


class TestWhatTrainingLeaves:
    def test_the_training_codes_enum_is_left_unread(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """``args.model_type`` is an enum of the training code, which is not installed here."""
        kind = enum.Enum("ModelType", {"encoder_or_decoder": 1}, module="megatron.model.enums")
        module = types.ModuleType("megatron.model.enums")
        module.ModelType = kind  # type: ignore[attr-defined]
        with monkeypatch.context() as while_saving:
            while_saving.setitem(sys.modules, "megatron", types.ModuleType("megatron"))
            while_saving.setitem(sys.modules, "megatron.model", types.ModuleType("megatron.model"))
            while_saving.setitem(sys.modules, "megatron.model.enums", module)
            path = write_adept(
                tmp_path / "release", CONFIG, TENSORS, TOKENIZER, model_type=kind.encoder_or_decoder
            )
        checkpoint = open_checkpoint(path)
        assert checkpoint.config == CONFIG
        assert_holds(checkpoint, TENSORS)
        assert "megatron" not in sys.modules

    def test_random_states_are_left_unread(self, tmp_path: Path) -> None:
        path = write_adept(tmp_path / "release", CONFIG, TENSORS, TOKENIZER)
        contents = {
            "model": adept_model(TENSORS),
            "args": adept_args(CONFIG),
            "rng_state": [
                {
                    "random_rng_state": random.getstate(),
                    "np_rng_state": np.random.get_state(),
                    "torch_rng_state": torch.get_rng_state(),
                }
            ],
        }
        (path / rank_path(0)).write_bytes(saved(contents))
        assert_holds(open_checkpoint(path), TENSORS)

    def test_it_may_not_stand_for_the_model(self, tmp_path: Path) -> None:
        path = write_adept(tmp_path / "release", CONFIG, TENSORS, TOKENIZER, hidden_size=np.ones(3))
        assert_refused(path, "args.hidden_size", "expected an integer")
        contents = {"model": {"language_model": np.ones(3)}, "args": adept_args(CONFIG)}
        (path / rank_path(0)).write_bytes(saved(contents))
        assert_refused(path, "language_model", "expected a tensor")

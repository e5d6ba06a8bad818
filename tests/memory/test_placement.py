"""Where a checkpoint runs, and in which dtypes, where the user leaves it open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_huggingface

from adept_fast import placement
from adept_fast.arguments import ParameterError
from adept_fast.checkpoint import WEIGHT_DTYPES, Checkpoint, open_checkpoint
from adept_fast.checkpoint.convert import convert
from adept_fast.extension import Extension
from adept_fast.placement import choose_placement, imagine_placement
from adept_fast.weights import weights_bytes


def checkpoint_in(path: Path, dtype: str, **changes: Any) -> Checkpoint:
    config = small_config(**changes)
    write_huggingface(path, config, random_tensors(config, dtype=WEIGHT_DTYPES[dtype]), demo_tokenizer())
    return open_checkpoint(path)


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(placement.cuda, "unavailable", lambda device: None)
    monkeypatch.delenv("ADEPT_FAST_OPTIONAL", raising=False)


@pytest.mark.parametrize(
    ("stored", "chosen"), [("float32", "float16"), ("float16", "float16"), ("bfloat16", "bfloat16")]
)
def test_a_gpu_is_taken_and_float32_is_halved_there(
    tmp_path: Path, a_gpu: None, stored: str, chosen: str
) -> None:
    placed = choose_placement(checkpoint_in(tmp_path, stored), "auto", "auto", "float16")
    assert placed.device.type == "cuda"
    assert placed.dtype == WEIGHT_DTYPES[chosen]
    assert placed.reason


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_on_a_cpu_weights_are_widened_where_that_takes_half_the_memory_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str
) -> None:
    """The reference operators widen at every use; the native ones do not need to."""
    checkpoint = checkpoint_in(tmp_path, stored)
    widened = weights_bytes(checkpoint, torch.float32)
    monkeypatch.setattr(placement.extension, "load", lambda: Extension(False, "not built"))
    for available, chosen in ((2 * widened, "float32"), (2 * widened - 1, stored)):
        monkeypatch.setattr(placement, "available_bytes", lambda device, size=available: size)
        placed = choose_placement(checkpoint, "cpu", "auto", "float16")
        assert placed.dtype == WEIGHT_DTYPES[chosen]
        assert "half the memory" in placed.reason
    monkeypatch.setattr(placement.extension, "load", lambda: Extension(True, "built"))
    assert choose_placement(checkpoint, "cpu", "auto", "float16").dtype == WEIGHT_DTYPES[stored]


def test_weights_are_copied_to_huge_pages_where_a_copy_takes_half_the_memory_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoint_in(tmp_path, "float16")
    held = weights_bytes(checkpoint, torch.float16)
    for unavailable in (None, "the system has none"):
        monkeypatch.setattr(placement.huge_pages, "unavailable", lambda why=unavailable: why)
        for available, reason in ((2 * held, unavailable), (2 * held - 1, "a copy of the weights")):
            monkeypatch.setattr(placement, "available_bytes", lambda device, size=available: size)
            placed = choose_placement(checkpoint, "cpu", "float16", "float16")
            assert (placed.small_pages_reason or "").startswith(reason or "")
            assert (placed.small_pages_reason is None) == (reason is None)
            assert placed.pages_in_words.startswith("huge" if reason is None else "small (")


def test_float32_stays_float32_on_a_cpu_however_little_memory_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "available_bytes", lambda device: 1)
    placed = choose_placement(checkpoint_in(tmp_path, "float32"), "cpu", "auto", "float16")
    assert placed.dtype == torch.float32


def test_what_is_asked_for_is_taken(tmp_path: Path) -> None:
    placed = choose_placement(checkpoint_in(tmp_path, "float16"), "cpu", "bfloat16", "float32")
    assert (placed.dtype, placed.cache_dtype, placed.reason) == (torch.bfloat16, torch.float32, "as asked")


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ("fp8", "fp8, embedding float16 (packed from float16)"),
        ("int4", "int4-g128, lm_head fp8, embedding float16 (packed from float16)"),
    ],
)
def test_a_gpu_has_packings_of_its_own(tmp_path: Path, a_gpu: None, weights: str, words: str) -> None:
    checkpoint = checkpoint_in(tmp_path, "float16")
    placed = choose_placement(checkpoint, "cuda", "auto", "float16", weights)
    assert (placed.weights_in_words, placed.unreadable) == (words, None)
    assert placed.unpacking_bytes > 0
    assert choose_placement(checkpoint, "cuda", "auto", "float16").unpacking_bytes == 0


@pytest.mark.parametrize(
    ("device", "weights", "allowed"),
    [
        ("cuda", "int8", "fp8 or int4-g128 or int4"),
        ("cpu", "fp8", "int8 or int4-g32 or int4"),
        ("cuda", "int3", "fp8 or int4-g128 or int4"),
    ],
)
def test_a_packing_of_the_other_device_is_refused(
    tmp_path: Path, a_gpu: None, device: str, weights: str, allowed: str
) -> None:
    says = f"weights is {weights!r}; expected {allowed} on {device}, or None"
    with pytest.raises(ParameterError, match=says):
        choose_placement(checkpoint_in(tmp_path, "float16"), device, "auto", "float16", weights)


def test_what_a_native_checkpoint_holds_is_taken_on_a_gpu_too(tmp_path: Path, a_gpu: None) -> None:
    checkpoint_in(tmp_path / "source", "float16")
    convert(tmp_path / "source", tmp_path / "native", weights="int8", progress=False)
    native = open_checkpoint(tmp_path / "native")
    for weights in (None, "int8"):
        placed = choose_placement(native, "cuda", "auto", "float16", weights)
        assert placed.weights_in_words == "int8, embedding float16 (as stored)"
        assert placed.unreadable == "the kernels take fp8 and int4-g128, not int8"


def test_matrices_that_the_kernels_do_not_take(tmp_path: Path, a_gpu: None) -> None:
    checkpoint = checkpoint_in(tmp_path, "float16")
    assert "not float32" in str(choose_placement(checkpoint, "cuda", "float32", "float16").unreadable)
    for dtype in ("float16", "bfloat16"):
        assert choose_placement(checkpoint, "cuda", dtype, "float32").unreadable is None
    assert choose_placement(checkpoint, "cpu", "float32", "float16").unreadable is None


def test_optional_packages_that_there_are_not(
    tmp_path: Path, a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoint_in(tmp_path, "float16")
    monkeypatch.setenv("ADEPT_FAST_OPTIONAL", "flash")
    with pytest.raises(ParameterError, match="ADEPT_FAST_OPTIONAL names 'flash'; expected flash-attn"):
        choose_placement(checkpoint, "cuda", "auto", "float16")


class TestEmbedding:
    @pytest.mark.parametrize(
        ("asked", "place", "words"),
        [
            ("auto", "auto", "on the device or on the host (as fits)"),
            ("device", "device", "on the device (as asked)"),
            ("host", "host", "pinned on the host (as asked)"),
        ],
    )
    def test_it_is_where_it_is_asked_for(
        self, tmp_path: Path, a_gpu: None, asked: str, place: str, words: str
    ) -> None:
        checkpoint = checkpoint_in(tmp_path, "float16")
        placed = choose_placement(checkpoint, "cuda", "auto", "float16", embedding=asked)
        assert (placed.embedding, placed.embedding_place, placed.may_pin_embedding) == (place, words, True)
        on_a_cpu = choose_placement(checkpoint, "cpu", "auto", "float16", embedding=asked)
        assert (on_a_cpu.embedding, on_a_cpu.embedding_place) == ("device", "in memory (as the rest)")
        assert not on_a_cpu.may_pin_embedding

    def test_a_plan_settles_what_was_left_open(self, tmp_path: Path, a_gpu: None) -> None:
        left_open = choose_placement(checkpoint_in(tmp_path, "float16"), "cuda", "auto", "float16")
        assert left_open.settled("device").embedding_place == "on the device (all fits there)"
        host = left_open.settled("host")
        assert host.embedding_place == "pinned on the host (with it on the device not all would fit)"
        assert host.settled("device") is host

    def test_a_place_that_there_is_not(self, tmp_path: Path) -> None:
        with pytest.raises(ParameterError, match="embedding is 'disk'; expected auto, device, host"):
            choose_placement(checkpoint_in(tmp_path, "float16"), "cpu", "auto", "float16", embedding="disk")

    def test_without_kernels_it_stays_on_the_device(
        self, tmp_path: Path, a_gpu: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(placement.cuda, "unavailable", lambda device: "no nvcc")
        checkpoint = checkpoint_in(tmp_path, "float16")
        placed = choose_placement(checkpoint, "cuda", "auto", "float16")
        assert (placed.embedding, placed.may_pin_embedding) == ("device", False)
        assert "only the CUDA kernels look it up on the host: no nvcc" in placed.embedding_place
        says = "embedding is 'host'; expected device or auto, as only the CUDA kernels .*: no nvcc"
        with pytest.raises(ParameterError, match=says):
            choose_placement(checkpoint, "cuda", "auto", "float16", embedding="host")

    def test_one_that_is_the_output_matrix_too_stays_on_the_device(self, tmp_path: Path, a_gpu: None) -> None:
        tied = checkpoint_in(tmp_path, "float16", tie_word_embeddings=True)
        assert choose_placement(tied, "cuda", "auto", "float16").embedding == "device"
        with pytest.raises(ParameterError, match="as it is the output matrix too"):
            choose_placement(tied, "cuda", "auto", "float16", embedding="host")
        assert choose_placement(tied, "cuda", "auto", "float16", "fp8", "host").embedding == "host"


def test_a_gpu_holds_the_rows_of_the_vocabulary_that_are_used(tmp_path: Path, a_gpu: None) -> None:
    checkpoint = checkpoint_in(tmp_path, "float16")
    assert checkpoint.config.vocab_size == 4160
    assert choose_placement(checkpoint, "cuda", "auto", "float16").vocab_rows == 4096
    assert choose_placement(checkpoint, "cpu", "auto", "float16").vocab_rows is None


def test_an_imagined_gpu_is_as_a_real_one(tmp_path: Path, a_gpu: None) -> None:
    checkpoint = checkpoint_in(tmp_path, "bfloat16")
    imagined = imagine_placement(checkpoint, 24 * 10**9, "auto", "float16", "fp8", "auto")
    real = choose_placement(checkpoint, "cuda", "auto", "float16", "fp8", "auto")
    assert imagined == replace(real, imagined_bytes=24 * 10**9)

"""Where a checkpoint runs, and in which dtypes, if the user leaves it open; and how that is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_huggingface

from adept_fast.arguments import ParameterError
from adept_fast.checkpoint import WEIGHT_DTYPES, Checkpoint, open_checkpoint
from adept_fast.checkpoint.convert import convert
from adept_fast.commands.placement_words import (
    describe_embedding,
    describe_layout,
    describe_pages,
    describe_weights,
)
from adept_fast.engine import loading, placement
from adept_fast.engine.loading import request_memory
from adept_fast.engine.placement import Placement, choose_placement
from adept_fast.extension import Extension
from adept_fast.memory.advice import plan_memory
from adept_fast.memory.footprint import footprint
from adept_fast.memory.plan import huge_pages
from adept_fast.ops import step_kernels

CPU, GPU = torch.device("cpu"), torch.device("cuda")
GB = 10**9


def checkpoint_in(path: Path, dtype: str, **changes: Any) -> Checkpoint:
    config = small_config(**changes)
    write_huggingface(path, config, random_tensors(config, dtype=WEIGHT_DTYPES[dtype]), demo_tokenizer())
    return open_checkpoint(path)


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(loading.cuda, "unavailable", lambda device: None)
    monkeypatch.setattr(loading, "available_bytes", lambda device: 24 * GB)
    monkeypatch.delenv("ADEPT_FAST_OPTIONAL", raising=False)


@pytest.mark.parametrize(
    ("stored", "chosen"), [("float32", "float16"), ("float16", "float16"), ("bfloat16", "bfloat16")]
)
def test_a_gpu_is_taken_and_float32_is_halved_there(
    tmp_path: Path, a_gpu: None, stored: str, chosen: str
) -> None:
    placed, _ = request_memory(checkpoint_in(tmp_path, stored))
    assert placed.device.type == "cuda"
    assert placed.dtype == WEIGHT_DTYPES[chosen]
    assert placed.dtype_reason


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_on_a_cpu_weights_are_widened_where_that_takes_half_the_memory_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str
) -> None:
    """The reference operators widen at every use; the native ones do not need to."""
    checkpoint = checkpoint_in(tmp_path, stored)
    widened = footprint(checkpoint, torch.float32).total_bytes
    monkeypatch.setattr(placement.extension, "load", lambda: Extension(False, "not built"))
    for available, chosen in ((2 * widened, "float32"), (2 * widened - 1, stored)):
        monkeypatch.setattr(placement, "available_bytes", lambda device, size=available: size)
        placed = choose_placement(checkpoint, CPU)
        assert placed.dtype == WEIGHT_DTYPES[chosen]
        assert "half the memory" in placed.dtype_reason
    monkeypatch.setattr(placement.extension, "load", lambda: Extension(True, "built"))
    assert choose_placement(checkpoint, CPU).dtype == WEIGHT_DTYPES[stored]


def test_weights_are_copied_to_huge_pages_where_a_copy_takes_half_the_memory_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoint_in(tmp_path, "float16")
    held = footprint(checkpoint, torch.float16).total_bytes
    for unavailable in (None, "the system has none"):
        monkeypatch.setattr(huge_pages, "unavailable", lambda why=unavailable: why)
        for available, reason in ((2 * held, unavailable), (2 * held - 1, "a copy of the weights")):
            monkeypatch.setattr(loading, "available_bytes", lambda device, size=available: size)
            _, request = request_memory(checkpoint, device="cpu", dtype="float16")
            assert (request.small_pages_reason or "").startswith(reason or "")
            assert (request.small_pages_reason is None) == (reason is None)
            assert describe_pages(request).startswith("huge" if reason is None else "small (")


def test_float32_stays_float32_on_a_cpu_however_little_memory_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "available_bytes", lambda device: 1)
    placed = choose_placement(checkpoint_in(tmp_path, "float32"), CPU)
    assert placed.dtype == torch.float32


def test_what_is_asked_for_is_taken(tmp_path: Path) -> None:
    placed = choose_placement(checkpoint_in(tmp_path, "float16"), CPU, "bfloat16", "float32")
    assert placed == Placement(
        CPU, torch.bfloat16, torch.float32, None, "as asked", "row_major", placed.layout_reason
    )


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ("fp8", "fp8, embedding float16 (packed from float16)"),
        ("int4", "int4-g128, lm_head int8, embedding float16 (packed from float16)"),
    ],
)
def test_a_gpu_has_packings_of_its_own(tmp_path: Path, a_gpu: None, weights: str, words: str) -> None:
    checkpoint = checkpoint_in(tmp_path, "float16")
    placed, request = request_memory(checkpoint, weights=weights)
    assert describe_weights(placed) == words
    assert request.weights.unpacking_bytes > 0
    assert request_memory(checkpoint)[1].weights.unpacking_bytes == 0


@pytest.mark.parametrize(
    ("device", "weights", "allowed"),
    [
        ("cpu", "fp8", "int8 or int4-g32 or int4-g128 or int4"),
        ("cuda", "int3", "int8 or fp8 or int4-g32 or int4-g128 or int4"),
    ],
)
def test_a_packing_without_kernels_is_refused(
    tmp_path: Path, a_gpu: None, device: str, weights: str, allowed: str
) -> None:
    says = f"weights is {weights!r}; expected {allowed} on {device}, or None"
    with pytest.raises(ParameterError, match=says):
        request_memory(checkpoint_in(tmp_path, "float16"), device=device, weights=weights)


def test_what_a_native_checkpoint_holds_is_taken_on_a_gpu_too(tmp_path: Path, a_gpu: None) -> None:
    checkpoint_in(tmp_path / "source", "float16")
    convert(tmp_path / "source", tmp_path / "native", weights="int8", progress=False)
    native = open_checkpoint(tmp_path / "native")
    for weights in (None, "int8"):
        placed, request = request_memory(native, device="cuda", weights=weights)
        assert describe_weights(placed) == "int8, embedding float16 (as stored)"
        assert request.weights.unpacking_bytes > 0


def test_optional_packages_that_there_are_not(
    tmp_path: Path, a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoint_in(tmp_path, "float16")
    monkeypatch.setenv("ADEPT_FAST_OPTIONAL", "flash")
    with pytest.raises(ParameterError, match="ADEPT_FAST_OPTIONAL names 'flash'; expected flash-attn"):
        request_memory(checkpoint, device="cuda")


class TestLayout:
    def test_a_cpu_has_one(self, tmp_path: Path) -> None:
        checkpoint = checkpoint_in(tmp_path, "float16")
        for weights, words in ((None, "row_major"), ("int4", "cpu_tiled")):
            placed, _ = request_memory(checkpoint, device="cpu", weights=weights)
            assert describe_layout(placed) == f"{words} (the kernels of a CPU read no other)"
        for name in ("tiles", "row_major"):
            says = f"weight_layout is {name!r}; expected auto on a CPU, whose kernels read one layout"
            with pytest.raises(ParameterError, match=says):
                request_memory(checkpoint, device="cpu", weight_layout=name)

    @pytest.mark.parametrize("weights", [None, "int8", "fp8", "int4-g32", "int4"])
    def test_a_gpu_has_two(self, tmp_path: Path, a_gpu: None, weights: str | None) -> None:
        checkpoint = checkpoint_in(tmp_path, "float16", hidden_size=72, num_attention_heads=3)
        requests = {}
        for name, words in (
            ("auto", "row_major (the kernels that read tiles have not been timed on a GPU)"),
            ("row_major", "row_major (as asked)"),
            ("tiles", "tiles (as asked)"),
        ):
            placed, request = request_memory(checkpoint, weights=weights, weight_layout=name)
            assert describe_layout(placed) == words
            held = footprint(checkpoint, placed.dtype, placed.weights, GPU, 4096, placed.layout)
            assert request.weights == held
            requests[name] = request
        assert requests["auto"] == requests["row_major"]
        assert requests["tiles"].weights.total_bytes > requests["auto"].weights.total_bytes
        others = zip(requests["tiles"].other_weights, requests["auto"].other_weights, strict=True)
        assert all(tiles.total_bytes > rows.total_bytes for tiles, rows in others)

    @pytest.mark.parametrize(
        ("name", "head_dim", "words"),
        [
            ("", 24, "four kernels a layer, ADEPT_FAST_STEP=one for one kernel"),
            ("layers", 24, "four kernels a layer, ADEPT_FAST_STEP=one for one kernel"),
            ("one", 24, "one kernel for all layers, up to 8 tokens a step, of capability 9.0 on"),
            ("one", 72, "four kernels a layer, as one takes heads of up to 64 dimensions"),
        ],
    )
    def test_the_kernels_of_a_step(
        self, name: str, head_dim: int, words: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ADEPT_FAST_STEP", name)
        assert step_kernels.description(head_dim) == words

    def test_kernels_of_a_step_that_there_are_not(
        self, tmp_path: Path, a_gpu: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The setting is refused before weights are read, and only where it means something."""
        monkeypatch.setenv("ADEPT_FAST_STEP", "two")
        checkpoint = checkpoint_in(tmp_path, "float16")
        with pytest.raises(ParameterError, match="^ADEPT_FAST_STEP is 'two'; expected layers or one$"):
            request_memory(checkpoint, weight_layout="tiles")
        request_memory(checkpoint, weight_layout="row_major")

    def test_a_table_that_is_the_output_matrix_too_stays_as_it_is(self, tmp_path: Path, a_gpu: None) -> None:
        tied = checkpoint_in(tmp_path, "float16", tie_word_embeddings=True)
        words = "tiles (as asked; the lm_head stays row_major, as it is the embedding too)"
        assert describe_layout(request_memory(tied, weight_layout="tiles")[0]) == words
        packed, _ = request_memory(tied, weights="int8", weight_layout="tiles")
        assert describe_layout(packed) == "tiles (as asked)"

    @pytest.mark.parametrize(
        ("hidden", "asked", "reason"),
        [
            (64, {"dtype": "float32"}, "the kernels take float16 and bfloat16, not torch.float32"),
            (60, {}, "the kernels take a hidden_size in multiples of 8, not 60"),
            (60, {"weights": "fp8"}, "the kernels take a hidden_size in multiples of 8, not 60"),
        ],
    )
    def test_a_model_without_tiles(
        self, tmp_path: Path, a_gpu: None, hidden: int, asked: dict[str, Any], reason: str
    ) -> None:
        checkpoint = checkpoint_in(tmp_path, "float16", hidden_size=hidden, num_attention_heads=1)
        says = f"weight_layout is 'tiles'; expected row_major or auto, as {reason}"
        with pytest.raises(ParameterError, match=says):
            request_memory(checkpoint, weight_layout="tiles", **asked)
        assert request_memory(checkpoint, **asked)[0].layout == "row_major"

    def test_without_kernels_there_are_no_tiles(
        self, tmp_path: Path, a_gpu: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loading.cuda, "unavailable", lambda device: "the extension is built without CUDA")
        checkpoint = checkpoint_in(tmp_path, "float16")
        says = "weight_layout is 'tiles'; expected row_major or auto, as the extension is built without CUDA"
        for weights in (None, "int8"):
            with pytest.raises(ParameterError, match=says):
                request_memory(checkpoint, weights=weights, weight_layout="tiles")
        assert request_memory(checkpoint, gpu_memory=GB, weight_layout="tiles")[0].layout == "tiles"

    def test_one_that_there_is_not(self, tmp_path: Path) -> None:
        says = "weight_layout is 'columns'; expected auto, row_major, tiles"
        with pytest.raises(ParameterError, match=says):
            request_memory(checkpoint_in(tmp_path, "float16"), weight_layout="columns")


class TestEmbedding:
    @pytest.mark.parametrize(
        ("asked", "words"),
        [
            ("auto", "on the device or on the host (as fits)"),
            ("device", "on the device (as asked)"),
            ("host", "pinned on the host (as asked)"),
        ],
    )
    def test_it_is_where_it_is_asked_for(self, tmp_path: Path, a_gpu: None, asked: str, words: str) -> None:
        checkpoint = checkpoint_in(tmp_path, "float16")
        _, request = request_memory(checkpoint, embedding=asked)
        assert (request.embedding, request.pinning_refusal) == (asked, None)
        assert describe_embedding(request, None) == words
        _, on_a_cpu = request_memory(checkpoint, device="cpu", embedding=asked)
        assert (on_a_cpu.embedding, describe_embedding(on_a_cpu, None)) == (
            "device",
            "in memory (as the rest)",
        )
        assert on_a_cpu.pinning_refusal is not None

    def test_a_plan_settles_what_was_left_open(self, tmp_path: Path, a_gpu: None) -> None:
        _, request = request_memory(checkpoint_in(tmp_path, "float16"))
        enough = request.plan(request.config.max_position_embeddings, "device").peak_bytes
        for available, words in (
            (enough, "on the device (all fits there)"),
            (enough - 1, "pinned on the host (with it on the device not all would fit)"),
        ):
            changed = replace(request, available_bytes=available)
            assert describe_embedding(changed, plan_memory(changed)) == words

    def test_a_place_that_there_is_not(self, tmp_path: Path) -> None:
        with pytest.raises(ParameterError, match="embedding is 'disk'; expected auto, device, host"):
            request_memory(checkpoint_in(tmp_path, "float16"), device="cpu", embedding="disk")

    def test_without_kernels_it_stays_on_the_device(
        self, tmp_path: Path, a_gpu: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loading.cuda, "unavailable", lambda device: "no nvcc")
        checkpoint = checkpoint_in(tmp_path, "float16")
        _, request = request_memory(checkpoint, max_seq_len=64)
        assert replace(request, available_bytes=1).chosen_embedding() == "device"
        words = "on the device (only the CUDA kernels look it up on the host: no nvcc)"
        assert describe_embedding(request, None) == describe_embedding(request, plan_memory(request)) == words
        says = "embedding is 'host'; expected device or auto, as only the CUDA kernels .*: no nvcc"
        with pytest.raises(ParameterError, match=says):
            request_memory(checkpoint, device="cuda", embedding="host")

    def test_one_that_is_the_output_matrix_too_stays_on_the_device(self, tmp_path: Path, a_gpu: None) -> None:
        tied = checkpoint_in(tmp_path, "float16", tie_word_embeddings=True)
        assert request_memory(tied)[1].chosen_embedding() == "device"
        with pytest.raises(ParameterError, match="as it is the output matrix too"):
            request_memory(tied, device="cuda", embedding="host")
        assert request_memory(tied, weights="fp8", embedding="host")[1].chosen_embedding() == "host"


def test_a_gpu_holds_the_rows_of_the_vocabulary_that_are_used(tmp_path: Path, a_gpu: None) -> None:
    checkpoint = checkpoint_in(tmp_path, "float16")
    assert checkpoint.config.vocab_size == 4160
    assert request_memory(checkpoint, device="cuda")[1].vocab_rows == 4096
    assert request_memory(checkpoint, device="cpu")[1].vocab_rows == 4160


def test_an_imagined_gpu_is_as_a_real_one(tmp_path: Path, a_gpu: None) -> None:
    checkpoint = checkpoint_in(tmp_path, "bfloat16")
    placed, imagined = request_memory(checkpoint, gpu_memory=20 * GB, weights="fp8")
    real = request_memory(checkpoint, device="cuda", weights="fp8")
    same = replace(imagined, available_bytes=24 * GB, host_available_bytes=24 * GB)
    assert (placed, same) == real

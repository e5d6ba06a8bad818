"""Where a checkpoint runs, and in which dtypes, where the user leaves it open."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_huggingface

from adept_fast import placement
from adept_fast.checkpoint import WEIGHT_DTYPES, Checkpoint, open_checkpoint
from adept_fast.extension import Extension
from adept_fast.placement import choose_placement
from adept_fast.weights import weights_bytes


def checkpoint_in(path: Path, dtype: str) -> Checkpoint:
    config = small_config()
    write_huggingface(path, config, random_tensors(config, dtype=WEIGHT_DTYPES[dtype]), demo_tokenizer())
    return open_checkpoint(path)


@pytest.mark.parametrize(
    ("stored", "chosen"), [("float32", "float16"), ("float16", "float16"), ("bfloat16", "bfloat16")]
)
def test_a_gpu_is_taken_and_float32_is_halved_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str, chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
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

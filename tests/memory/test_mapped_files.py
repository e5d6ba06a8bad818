"""Releasing pages of mapped files: memory goes down, what they hold stays, other memory is left alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adept_fast.system.mapped_files import release_pages

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="Linux says what is resident")


def resident_bytes(file: Path) -> int:
    """How much of the file's mappings is in memory."""
    sections = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    found = (
        re.search(r"(?m)^Rss:\s+(\d+) kB", text) for text in sections if str(file) in text.split("\n")[0]
    )
    return sum(int(match[1]) * 1024 for match in found if match)


def test_pages_of_a_file_are_given_back_and_come_back(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    expected = torch.arange(1 << 20, dtype=torch.int32)
    save_file({"small": torch.ones(3, dtype=torch.int8), "large": expected}, file)
    tensor = load_file(file)["large"]
    assert torch.equal(tensor, expected)
    before = resident_bytes(file)
    assert before >= tensor.nbytes - 8192
    assert release_pages(tensor)
    assert resident_bytes(file) <= before - tensor.nbytes + 8192
    assert torch.equal(tensor, expected)


def test_other_memory_keeps_what_it_holds() -> None:
    tensor = torch.arange(1 << 20, dtype=torch.int32)
    assert not release_pages(tensor)
    assert torch.equal(tensor, torch.arange(1 << 20, dtype=torch.int32))


def test_less_than_a_page_or_scattered_is_left(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({"tensor": torch.arange(1 << 20, dtype=torch.int32)}, file)
    tensor = load_file(file)["tensor"]
    assert not release_pages(tensor[:100])
    assert not release_pages(tensor.view(1024, 1024).t())

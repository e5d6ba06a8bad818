"""The parts of checkpoints: together they are the whole, and a rank reads no more than its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_adept, write_huggingface
from torch import Tensor

from adept_fast.checkpoint import Checkpoint, open_checkpoint
from adept_fast.checkpoint.convert import convert
from adept_fast.checkpoint.shares import Share, rank_checkpoint
from adept_fast.quantization.formats import FORMATS
from adept_fast.system.regular_file import RegularFile

CONFIG = small_config(intermediate_size=190, vocab_size=4130)  # which 4 ranks do not divide
EVEN = small_config()
_COLUMNS = ("self_attn.dense.weight", "mlp.dense_4h_to_h.weight")
_ROWS = ("query_key_value", "dense_h_to_4h", "embed_tokens", "lm_head")


def parts_of(checkpoint: Checkpoint, count: int) -> list[Checkpoint]:
    shares = [Share(checkpoint.config, rank, count) for rank in range(count)]
    return [rank_checkpoint(checkpoint, share, checkpoint.weights) for share in shares]


def joined(name: str, parts: list[Tensor]) -> Tensor:
    """The whole tensor, by Megatron's rules rather than by those of the code."""
    if name.endswith(_COLUMNS):
        return torch.cat(parts, dim=1)
    if any(kind in name for kind in _ROWS):
        return torch.cat(parts)
    if name.endswith(("dense.bias", "dense_4h_to_h.bias")):
        return torch.stack(parts).sum(0)
    assert all(torch.equal(part, parts[0]) for part in parts)
    return parts[0]


def check_parts(checkpoint: Checkpoint, whole: dict[str, Tensor], count: int) -> None:
    parts = parts_of(checkpoint, count)
    for part in parts:
        assert {name: tensor.shape for name, tensor in part.tensors.items()} == part.config.tensor_shapes()
    for name, expected in whole.items():
        read = [part.tensors[name].read() for part in parts]
        assert [tuple(tensor.shape) for tensor in read] == [part.tensors[name].shape for part in parts]
        assert torch.equal(joined(name, read), expected), name


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("config", [CONFIG, EVEN, small_config(tie_word_embeddings=True, qk_layernorm=False)])
def test_parts_of_safetensors(tmp_path: Path, config: object, count: int, mmap: bool) -> None:
    assert isinstance(config, type(CONFIG))
    tensors = random_tensors(config)
    path = write_huggingface(tmp_path, config, tensors, demo_tokenizer(), shards=2)
    check_parts(open_checkpoint(path, mmap=mmap), tensors, count)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("stored", [1, 2, 4])
@pytest.mark.parametrize("count", [2, 4])
def test_parts_of_the_release(tmp_path: Path, stored: int, count: int, mmap: bool) -> None:
    """The ranks of the files and of the model agree, or the tensors are split anew."""
    tensors = random_tensors(EVEN)
    path = write_adept(tmp_path / "release", EVEN, tensors, demo_tokenizer(), ranks=stored)
    check_parts(open_checkpoint(path, mmap=mmap), tensors, count)


@pytest.mark.parametrize("rank", range(4))
def test_ranks_that_agree_with_the_files_read_their_own(
    tmp_path: Path, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_adept(tmp_path / "release", EVEN, random_tensors(EVEN), demo_tokenizer(), ranks=4)
    part = parts_of(open_checkpoint(path, mmap=False), 4)[rank]
    read = bytes_read_by_file(monkeypatch)
    for name in EVEN.tensor_shapes():
        if name.endswith("weight") and "norm" not in name:
            part.tensors[name].read()
    (file,) = read
    assert f"mp_rank_{rank:02d}" in file


def bytes_read_by_file(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many bytes of each file are copied from now on."""
    found: dict[str, int] = {}
    original = RegularFile.read_into

    def read_into(self: RegularFile, buffer: memoryview, start: int) -> None:
        found[str(self.path)] = found.get(str(self.path), 0) + len(buffer)
        original(self, buffer, start)

    monkeypatch.setattr(RegularFile, "read_into", read_into)
    return found


def packed(tmp_path: Path, weights: str, layout: str | None) -> Path:
    plain = write_huggingface(tmp_path / "plain", EVEN, random_tensors(EVEN), demo_tokenizer())
    convert(plain, tmp_path / "packed", weights=weights, layout=layout, progress=False)
    return tmp_path / "packed"


def read_all(checkpoint: Checkpoint) -> None:
    for read in checkpoint.packed.values():
        read()
    for name, tensor in checkpoint.tensors.items():
        if name not in checkpoint.packed:
            tensor.read()


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize(
    ("weights", "layout"), [(None, None), ("int8", "row_major"), ("int4-g32", "row_major")]
)
def test_a_rank_reads_its_part(
    tmp_path: Path, weights: str | None, layout: str | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of copied files a rank reads what its part has: LayerNorms are read by all."""
    if weights is None:
        path = write_huggingface(tmp_path, EVEN, random_tensors(EVEN), demo_tokenizer())
    else:
        path = packed(tmp_path, weights, layout)
    parts = parts_of(open_checkpoint(path, mmap=False), count)
    read = bytes_read_by_file(monkeypatch)
    whole = (path / "model.safetensors").stat().st_size
    for part in parts:
        read.clear()
        read_all(part)
        (size,) = read.values()
        assert size < whole / count * 1.1


PACKED = [(weights, layout) for weights in FORMATS for layout in ("row_major", "cpu_tiled")]


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize(("weights", "layout"), PACKED)
def test_parts_of_packed_matrices(tmp_path: Path, weights: str, layout: str, count: int) -> None:
    """They are the whole's weights, not rounded again, whatever groups the columns of a rank begin in."""
    if weights == "fp8" and layout == "cpu_tiled":
        pytest.skip("a CPU has no fp8")
    whole = open_checkpoint(packed(tmp_path, weights, layout))
    parts = parts_of(whole, count)
    for name, read in whole.packed.items():
        expected, own = read().dequantize(), [part.packed[name]().dequantize() for part in parts]
        if name.endswith("self_attn.dense.weight"):
            paddings = [part.config.dense_padding for part in parts]
            own = [
                one[:, before : one.shape[1] - after]
                for one, (before, after) in zip(own, paddings, strict=True)
            ]
            assert torch.equal(torch.cat(own, dim=1), expected), name
        else:
            assert torch.equal(torch.cat(own), expected), name

"""Weights in tiles in a model: the numbers are the same, and every byte is counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_huggingface
from saving import checkpoint_of
from torch import Tensor
from watched_checkpoint import Watched

from adept_fast import weights as weights_module
from adept_fast.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from adept_fast.checkpoint.convert import convert
from adept_fast.memory.footprint import footprint, tensor_bytes
from adept_fast.quantization.formats import FORMATS
from adept_fast.quantization.layout_gpu import GpuMatrix
from adept_fast.quantization.layout_gpu_tiles import GpuFloatTiles, GpuTiles
from adept_fast.quantization.layouts import TILES
from adept_fast.quantization.matrix import Matrix, QuantizedMatrix, first_rows
from adept_fast.weights import ModelWeights, load_weights

CPU, GPU = torch.device("cpu"), torch.device("cuda")
FLOATS = {"float16": torch.float16, "bfloat16": torch.bfloat16}
# 72 columns are no whole chunk in any format, and 120 rows no whole tiles.
CONFIG = small_config(hidden_size=72, intermediate_size=120, num_attention_heads=3)

every_format = pytest.mark.parametrize("fmt", [*FLOATS, *FORMATS])
every_tie = pytest.mark.parametrize("tied", [False, True])


def load(checkpoint: Checkpoint, fmt: str, layout: str = TILES, rows: int | None = None) -> ModelWeights:
    dtype = FLOATS.get(fmt, torch.float16)
    weights = FORMATS.get(fmt)
    return load_weights(checkpoint, dtype=dtype, device=CPU, weights=weights, layout=layout, vocab_rows=rows)


def matrices_of(weights: ModelWeights) -> list[Matrix]:
    layers = [(layer.w_qkv, layer.w_dense, layer.w_up, layer.w_down_t) for layer in weights.layers]
    return [matrix for layer in layers for matrix in layer]


def numbers(matrix: Matrix) -> Tensor:
    return matrix.float() if isinstance(matrix, Tensor) else matrix.dequantize()


@every_format
@every_tie
@pytest.mark.parametrize("rows", [None, 4096, 4090])
def test_they_are_the_weights_of_rows_and_counted_as_held(
    tmp_path: Path, fmt: str, tied: bool, rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoint_of(tmp_path, replace(CONFIG, tie_word_embeddings=tied))
    found = load(checkpoint, fmt, rows=rows)
    monkeypatch.setattr(weights_module, "layout_of", lambda *_: GpuMatrix)
    expected = load(checkpoint, fmt, "row_major", rows)
    kind = GpuTiles if fmt in FORMATS else GpuFloatTiles
    for matrix, other in zip(matrices_of(found), matrices_of(expected), strict=True):
        assert isinstance(matrix, kind)
        assert matrix.shape == tuple(other.shape)
        assert torch.equal(numbers(matrix), numbers(other))
    assert torch.equal(numbers(found.lm_head), numbers(expected.lm_head))
    is_shared = tied and fmt in FLOATS
    assert (found.lm_head is found.embedding) == is_shared
    assert isinstance(found.lm_head, Tensor if is_shared else kind)
    assert torch.equal(found.embedding, expected.embedding)
    monkeypatch.undo()
    held = [part for layer in found.layers for part in vars(layer).values() if part is not None]
    held += [found.final_gamma, found.final_beta, found.lm_head]
    held_bytes = sum(part.nbytes for part in held) + (0 if is_shared else found.embedding.nbytes)
    dtype = FLOATS.get(fmt, torch.float16)
    planned = footprint(checkpoint, dtype, FORMATS.get(fmt), CPU, rows, TILES)
    assert held_bytes == planned.total_bytes
    for matrix in matrices_of(found):
        assert not isinstance(matrix, Tensor)
        assert matrix.nbytes == sum(tensor.untyped_storage().nbytes() for tensor in matrix.tensors)
    by_name = tensor_bytes(checkpoint, dtype, FORMATS.get(fmt), CPU, rows, TILES)
    assert by_name["model.layers.0.mlp.dense_4h_to_h.weight"] == found.layers[0].w_down_t.nbytes
    assert found.bytes_per_step(4090) == sum(
        part.nbytes for part in [*held[:-1], first_rows(found.lm_head, 4090)]
    )


@every_format
def test_padding_is_in_the_plan(tmp_path: Path, fmt: str) -> None:
    """A qkv of 216 rows is 14 tiles of one chunk, a down-projection of 72 columns one strip of 120 rows."""
    checkpoint = checkpoint_of(tmp_path, CONFIG)
    sizes = tensor_bytes(checkpoint, FLOATS.get(fmt, torch.float16), FORMATS.get(fmt), CPU, None, TILES)
    chunk, row = {"int4-g32": (4608, 576), "int4-g128": (4224, 528)}.get(fmt, (4096, 512))
    is_8_bits = fmt in ("int8", "fp8")
    layer = "model.layers.1."
    assert sizes[f"{layer}self_attn.query_key_value.weight"] == 14 * chunk + (4 * 216 if is_8_bits else 0)
    assert sizes[f"{layer}mlp.dense_4h_to_h.weight"] == 120 * row + (4 * 72 if is_8_bits else 0)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("layout", ["row_major", "cpu_tiled"])
def test_packed_checkpoints_are_laid_in_tiles(tmp_path: Path, fmt: str, layout: str) -> None:
    if (fmt, layout) == ("fp8", "cpu_tiled"):
        pytest.skip("a CPU has no order of fp8")
    source = checkpoint_of(tmp_path / "source", CONFIG)
    convert(tmp_path / "source", tmp_path / "packed", weights=fmt, layout=layout, progress=False)
    packed = open_checkpoint(tmp_path / "packed")
    for rows in (None, 4090):
        found, expected = load(packed, fmt, rows=rows), load(source, fmt, rows=rows)
        for matrix, other in zip(
            [*matrices_of(found), found.lm_head], [*matrices_of(expected), expected.lm_head], strict=True
        ):
            assert isinstance(matrix, GpuTiles)
            assert isinstance(other, GpuTiles)
            assert matrix.spec == other.spec
            for one, another in zip(matrix.tensors, other.tensors, strict=True):
                assert torch.equal(one.view(torch.uint8), another.view(torch.uint8))


@every_format
def test_no_stored_tensor_outlives_its_move(tmp_path: Path, fmt: str) -> None:
    checkpoint = checkpoint_of(tmp_path, CONFIG)
    watched = Watched(checkpoint)
    load(watched.checkpoint, fmt)
    assert watched.most <= 2  # the embedding, which is kept, and one more


@pytest.mark.parametrize("name", ["self_attn.dense", "mlp.dense_4h_to_h"])
def test_what_is_not_finite_is_refused(tmp_path: Path, name: str) -> None:
    """In the dtype that is held, of floats too."""
    tensors = random_tensors(CONFIG)
    tensors[f"model.layers.1.{name}.weight"][3, 5] = 70_000.0
    write_huggingface(tmp_path, CONFIG, tensors, demo_tokenizer())
    checkpoint = open_checkpoint(tmp_path)
    load(checkpoint, "bfloat16")
    with pytest.raises(CheckpointError, match=rf"tensor model\.layers\.1\.{name}\.weight has .* in float16"):
        load(checkpoint, "float16")


@pytest.mark.parametrize("part", ["scales", "values"])
def test_damage_of_a_packed_checkpoint_is_found(tmp_path: Path, part: str) -> None:
    fmt = "int4-g32" if part == "scales" else "fp8"
    checkpoint_of(tmp_path / "source", CONFIG)
    convert(tmp_path / "source", tmp_path / "packed", weights=fmt, progress=False)
    packed = open_checkpoint(tmp_path / "packed")
    name = "model.layers.0.mlp.dense_h_to_4h.weight"

    def damaged() -> QuantizedMatrix:
        matrix = packed.packed[name]().map(torch.clone)
        getattr(matrix, part).view(torch.uint8)[-1, -2:] = 0x7F
        return matrix

    with pytest.raises(CheckpointError, match=rf"{name}\.{part} has a NaN"):
        load(replace(packed, packed={**packed.packed, name: damaged}), fmt)


@every_format
def test_a_gpu_holds_blocks_beside_the_weights(tmp_path: Path, fmt: str) -> None:
    checkpoint = checkpoint_of(tmp_path, CONFIG)
    dtype, weights = FLOATS.get(fmt, torch.float16), FORMATS.get(fmt)
    planned = footprint(checkpoint, dtype, weights, GPU, 4096, TILES)
    assert planned.unpacking_bytes > 0
    largest = 4096 * 72 * 2 if weights else 0  # the lm_head is packed from its stored dtype
    assert planned.loading_bytes == (1 << 27) + largest

"""Packings of a GPU: what is rounded to what, how it lies in memory, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import small_config
from cuda_weights import packed_nibbles
from hypothesis import given, settings
from hypothesis import strategies as st
from saving import checkpoint_of
from torch import Tensor

from adept_fast import weights as weights_module
from adept_fast.checkpoint import CheckpointError
from adept_fast.ops.cuda import parts
from adept_fast.quantization import quantize_wide as module
from adept_fast.quantization.quantize import QuantizationError, QuantizedMatrix, first_rows
from adept_fast.quantization.quantize_wide import GROUP, WideMatrix, WidePacking, quantize_wide, wide_matrices
from adept_fast.weights import load_weights, weights_bytes

CPU = torch.device("cpu")
PACKINGS = [
    WidePacking(bits, layout, None if bits == 8 else GROUP) for bits in (8, 4) for layout in ("rows", "units")
]
SHAPES = [(1, 1), (3, 130), (65, 4160), (7, 128), (16, 127)]

every_packing = pytest.mark.parametrize("packing", PACKINGS, ids=lambda p: f"{p.bits} bits, {p.layout}")
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def gaussian(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(shape[0]))


def by_definition(matrix: WideMatrix) -> Tensor:
    """float64 [rows, columns], weight by weight."""
    rows, columns = matrix.shape
    if matrix.bits == 8:
        scales = matrix.scales.double()
        return matrix.values.double() * (scales[:, None] if matrix.layout == "rows" else scales)
    words = matrix.values.view(torch.int32).to(torch.int64)  # [rows, words]
    weights = torch.zeros(rows, columns, dtype=torch.float64)
    for column in range(columns):
        word, pair, half = column // 8, column % 8 // 2, column % 2
        q = words[:, word] >> (16 * half + 4 * pair) & 15
        weights[:, column] = (q - 8) * matrix.scales[:, column // GROUP].double()
    return weights


@every_packing
@every_shape
class TestLayout:
    def test_sizes(self, packing: WidePacking, shape: tuple[int, int]) -> None:
        matrix = quantize_wide(gaussian(*shape), packing)
        assert (tuple(matrix.values.shape), tuple(matrix.scales.shape)) == packing.shapes(shape)
        assert (matrix.values.dtype, matrix.scales.dtype) == packing.dtypes
        assert matrix.values.is_contiguous()
        assert matrix.scales.is_contiguous()
        assert matrix.nbytes == packing.nbytes(shape)
        assert (matrix.shape, matrix.device, matrix.has_minimum) == (shape, CPU, False)
        assert parts(matrix) == (matrix.values, matrix.scales)
        assert matrix.to(CPU).floats == matrix.floats

    def test_weights_stand_where_the_kernels_read_them(
        self, packing: WidePacking, shape: tuple[int, int]
    ) -> None:
        matrix = quantize_wide(gaussian(*shape), packing)
        torch.testing.assert_close(matrix.dequantize().double(), by_definition(matrix), rtol=0, atol=0)

    def test_blocks_and_first_rows(self, packing: WidePacking, shape: tuple[int, int]) -> None:
        matrix = quantize_wide(gaussian(*shape), packing)
        whole = matrix.dequantize()
        for start, stop in ((0, 1), (1, 3), (2, 1000)):
            assert torch.equal(matrix.dequantize(start, stop), whole[start:stop])
        for count in (1, 3, 1000):
            first = first_rows(matrix, count)
            assert isinstance(first, WideMatrix)
            assert torch.equal(first.dequantize(), whole[:count])
            assert (tuple(first.values.shape), tuple(first.scales.shape)) == packing.shapes(first.shape)
            assert first.values.data_ptr() == matrix.values.data_ptr()

    def test_how_it_is_cut_into_blocks_does_not_matter(
        self, packing: WidePacking, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = quantize_wide(gaussian(*shape), packing)
        monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 300)
        found = quantize_wide(gaussian(*shape).t().contiguous().t(), packing)
        assert torch.equal(found.values.view(torch.uint8), expected.values.view(torch.uint8))
        assert torch.equal(found.scales, expected.scales)

    def test_what_was_unpacked_is_packed_as_it_was(
        self, packing: WidePacking, shape: tuple[int, int]
    ) -> None:
        for size in (1e-2, 1.0, 300.0):
            weights = quantize_wide(gaussian(*shape) * size, packing).dequantize()
            assert torch.equal(quantize_wide(weights, packing).dequantize(), weights)

    def test_floats_for_many_tokens(self, packing: WidePacking, shape: tuple[int, int]) -> None:
        matrix = quantize_wide(gaussian(*shape).bfloat16(), packing)
        assert matrix.floats == torch.bfloat16
        assert quantize_wide(gaussian(*shape), packing).floats == torch.float16
        unscaled = matrix.unscaled(0, None, torch.bfloat16)
        assert unscaled.dtype == torch.bfloat16
        if packing.bits == 8:
            assert torch.equal(unscaled.float(), matrix.values.float())
        else:
            torch.testing.assert_close(unscaled.float(), matrix.dequantize(), rtol=2**-7, atol=1e-30)


def test_the_padding_is_worth_0() -> None:
    matrix = quantize_wide(gaussian(3, 130) + 3, WidePacking(4, "rows", GROUP))
    whole = WideMatrix(matrix.values, matrix.scales, (3, 256), 4, GROUP, "rows")
    assert not by_definition(whole)[:, 130:].any()


def test_nibbles_lie_as_the_tests_of_the_kernels_have_them() -> None:
    rounded = torch.randint(0, 16, (5, 256), dtype=torch.uint8)
    packed = module._bytes_of(rounded)
    assert torch.equal(packed, packed_nibbles(rounded.long()))
    assert torch.equal(module._nibbles_of(packed), rounded)


class TestRounding:
    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(
        st.integers(1, 40),
        st.integers(1, 300),
        st.sampled_from(PACKINGS),
        st.floats(-4, 4),
        st.integers(0, 99),
    )
    def test_nothing_is_off_by_more_than_its_format_says(
        self, rows: int, columns: int, packing: WidePacking, decade: float, seed: int
    ) -> None:
        weights = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 10**decade
        off = (quantize_wide(weights, packing).dequantize() - weights).abs()
        if packing.bits == 8:
            largest = weights.abs().amax(1 if packing.layout == "rows" else 0, keepdim=True)
            assert (off <= weights.abs() / 16 * 1.0001 + largest / 448 * 2**-10).all()
        else:
            for start in range(0, columns, GROUP):
                group = weights[:, start : start + GROUP]
                largest = group.abs().amax(1, keepdim=True)
                # At most clipped by the narrowest span, or half a step of the widest; of a float16 scale.
                assert (off[:, start : start + GROUP] <= largest * 0.25 + 2**-24 * 8).all()

    @pytest.mark.parametrize(
        ("packing", "most"), [(PACKINGS[0], 0.027), (PACKINGS[2], 0.102)], ids=["fp8", "int4"]
    )
    def test_the_error_on_gaussian_weights(self, packing: WidePacking, most: float) -> None:
        weights = gaussian(256, 4096)
        assert (quantize_wide(weights, packing).dequantize() - weights).square().mean().sqrt() < most

    def test_no_group_is_worse_off_than_with_its_whole_span(self) -> None:
        weights = torch.cat((gaussian(64, 256), gaussian(64, 256).exp(), gaussian(64, 256) ** 3))
        groups = weights.unflatten(1, (-1, GROUP))
        extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
        scale = (extreme / -8).half().float()
        naive = (groups / scale).round().clamp(-8, 7) * scale
        found = quantize_wide(weights, WidePacking(4, "rows", GROUP)).dequantize().unflatten(1, (-1, GROUP))
        errors, limits = ((found - groups) ** 2).sum(-1), ((naive - groups) ** 2).sum(-1)
        assert (errors <= limits * 1.02 + 1e-9).all()
        assert errors.sum() < 0.97 * limits.sum()

    @every_packing
    def test_zeros_and_constants(self, packing: WidePacking) -> None:
        assert not quantize_wide(torch.zeros(20, 200), packing).dequantize().any()
        for constant in (1.0, -0.37, 3e-3, 12345.0):
            found = quantize_wide(torch.full((20, 200), constant), packing).dequantize()
            assert torch.allclose(found, torch.full((20, 200), constant), rtol=2**-11, atol=0)

    @every_packing
    @pytest.mark.parametrize("size", [1e-6, 1e-12, 1e-38, 1e-44])
    def test_tiny_weights_are_as_close_as_the_scale_allows(self, packing: WidePacking, size: float) -> None:
        weights = gaussian(40, 128) * size
        off = (quantize_wide(weights, packing).dequantize() - weights).abs().max().item()
        step, widest = (2**-145 * 448, 0.25) if packing.bits == 8 else (2**-24 * 8, 1.0)
        assert off <= widest * size + step


class TestLimits:
    @every_packing
    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("place", [(0, 0), (69, 149), (35, 64)])
    def test_what_is_not_finite_is_refused(
        self, packing: WidePacking, bad: float, place: tuple[int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 1)
        weights = gaussian(70, 150)
        weights[place] = bad
        with pytest.raises(QuantizationError, match="has a NaN or an infinity"):
            quantize_wide(weights, packing)

    def test_huge_weights(self) -> None:
        weights = gaussian(40, 128).clamp(-3, 3)
        found = quantize_wide(weights * 1e38, PACKINGS[0]).dequantize()
        assert torch.allclose(found / 1e38, weights, rtol=0.07, atol=0.01)
        assert quantize_wide(weights * 1e4, PACKINGS[2]).dequantize().half().isfinite().all()
        with pytest.raises(QuantizationError, match="of magnitude 40000; this format ends at 32768"):
            quantize_wide(torch.full((1, 1), 4e4), PACKINGS[2])

    @pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(2, 2, 2), torch.zeros(2, 2).int()])
    def test_what_is_no_matrix_of_floats_is_refused(self, wrong: Tensor) -> None:
        with pytest.raises(QuantizationError, match="expected a matrix"):
            quantize_wide(wrong, PACKINGS[0])

    @pytest.mark.parametrize(("bits", "group"), [(8, 128), (4, None), (4, 32), (2, 128)])
    def test_packings_that_there_are_not(self, bits: int, group: int | None) -> None:
        with pytest.raises(QuantizationError, match=f"the packing is {bits} bits in groups of {group}"):
            WidePacking(bits, "rows", group)


class TestModels:
    @pytest.fixture(autouse=True)
    def _on_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(weights_module, "packs_wide", lambda checkpoint, device: True)

    def test_which_matrices_and_how(self) -> None:
        for weights, bits in (("fp8", 8), ("int4", 4)):
            matrices = wide_matrices(small_config(), weights)
            for name, matrix in matrices.items():
                of_head = name == "lm_head.weight"
                assert matrix.packing.bits == (8 if of_head else bits)
                assert matrix.packing.layout == ("units" if name.endswith("4h_to_h.weight") else "rows")
            assert len(matrices) == 4 * small_config().num_hidden_layers + 1

    @pytest.mark.parametrize("weights", ["fp8", "int4"])
    @pytest.mark.parametrize("tied", [False, True])
    def test_bytes_are_counted_as_they_are_held(self, tmp_path: Path, weights: str, tied: bool) -> None:
        checkpoint = checkpoint_of(tmp_path, small_config(tie_word_embeddings=tied))
        loaded = load_weights(checkpoint, dtype=torch.float16, device=CPU, weights=weights)
        layers: list[Any] = [part for layer in loaded.layers for part in vars(layer).values()]
        parts_read = [*layers, loaded.final_gamma, loaded.final_beta, loaded.lm_head]
        held = sum(part.nbytes for part in [loaded.embedding, *parts_read] if part is not None)
        assert held == weights_bytes(checkpoint, torch.float16, weights)
        unused = 4160 - 4096  # rows of lm_head, of 64 bytes and a float32 scale each
        read = sum(part.nbytes for part in parts_read if part is not None)
        assert loaded.bytes_per_step(4096) == read - unused * (64 + 4)
        assert isinstance(loaded.lm_head, WideMatrix)
        assert loaded.lm_head.bits == 8
        down = loaded.layers[0].w_down_t
        assert isinstance(down, QuantizedMatrix)
        assert down.layout == "units"

    def test_a_nan_is_named(self, tmp_path: Path) -> None:
        checkpoint = checkpoint_of(tmp_path)
        name = "model.layers.0.mlp.dense_4h_to_h.weight"
        matrix = wide_matrices(checkpoint.config, "fp8")[name]
        stored = checkpoint.tensors[name]
        broken = type(stored)(
            name, stored.shape, stored.dtype, "file", lambda: torch.full(stored.shape, torch.nan)
        )
        with pytest.raises(CheckpointError, match=f"file: tensor {name} has a NaN"):
            matrix.pack(broken)

"""Rounding and packing: what lies where, how far off it may be, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adept_fast.config import PersimmonConfig
from adept_fast.quantization import quantize as module
from adept_fast.quantization.quantize import (
    Packing,
    QuantizationError,
    QuantizedMatrix,
    first_rows,
    packing_of,
    quantize,
)

PACKINGS = [
    Packing(bits, layout, group, minimum)
    for layout in ("rows", "units")
    for bits, group, minimum in (
        (8, None, False),
        (4, 32, False),
        (4, 64, False),
        (4, 32, True),
        (4, 64, True),
    )
]
SHAPES = [(1, 1), (16, 64), (17, 65), (5, 128), (31, 129), (48, 200), (200, 48), (33, 384)]
LARGEST_HALF = torch.finfo(torch.float16).max


def name(packing: Packing) -> str:
    group = "" if packing.group_size is None else f"-{packing.group_size}"
    return f"{packing.layout}-int{packing.bits}{group}{'-min' * packing.has_minimum}"


every_packing = pytest.mark.parametrize("packing", PACKINGS, ids=name)


def gaussian(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def integers_of(matrix: QuantizedMatrix, rows: int, columns: int) -> Tensor:
    """Q of every weight, found by the formulas of NATIVE.md: float32 [rows, columns]."""
    r, c = torch.arange(rows)[:, None], torch.arange(columns)[None]
    values = matrix.values
    if matrix.layout == "rows" and matrix.bits == 8:
        return values[r // 16, c // 4, r % 16, c % 4].float()
    if matrix.layout == "rows":
        packed = values[r // 16, c // 8, r % 16, c % 4]
        return torch.where(c % 8 < 4, packed % 16, packed // 16).float()
    # c = 64 · block + 16 · i + 4 · l + b is byte 64 · block + 16 · l + 4 · i + b
    i, quarter, b = c % 64 // 16, c % 16 // 4, c % 4
    byte = 16 * quarter + 4 * i + b
    if matrix.bits == 8:
        return values[r, c // 64 * 64 + byte].float()
    packed = values[r, c // 128 * 64 + byte]
    return torch.where(c % 128 < 64, packed % 16, packed // 16).float()


def scales_of(matrix: QuantizedMatrix, rows: int, columns: int, part: int = 0) -> Tensor:
    """The scale (or, part 1, the minimum) of every weight: float32 [rows, columns]."""
    r, c = torch.arange(rows)[:, None], torch.arange(columns)[None]
    if matrix.group_size is None:
        return matrix.scales[r if matrix.layout == "rows" else c].expand(rows, columns)
    if matrix.layout == "rows":
        return matrix.scales[r // 16, c // matrix.group_size, part, r % 16].float()
    return matrix.scales[r, part, c // matrix.group_size].float()


def weights_of(matrix: QuantizedMatrix, rows: int, columns: int) -> Tensor:
    """Every weight by the formulas of NATIVE.md."""
    integers, scales = integers_of(matrix, rows, columns), scales_of(matrix, rows, columns)
    if matrix.bits == 8:
        return scales * integers
    if matrix.has_minimum:
        return scales * integers + scales_of(matrix, rows, columns, part=1)
    return scales * (integers - 8)


def padded_shape(matrix: QuantizedMatrix, packing: Packing) -> tuple[int, int]:
    rows = -(-matrix.shape[0] // 16) * 16 if packing.layout == "rows" else matrix.shape[0]
    return rows, packing.padded(matrix.shape[1])


class TestPacking:
    @every_packing
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_everything_lies_where_the_formulas_say(self, packing: Packing, shape: tuple[int, int]) -> None:
        matrix = quantize(gaussian(*shape), packing)
        assert torch.equal(matrix.dequantize(), weights_of(matrix, *shape))
        assert matrix.dequantize().dtype == torch.float32
        assert (tuple(matrix.values.shape), tuple(matrix.scales.shape)) == packing.shapes(shape)
        assert (matrix.values.dtype, matrix.scales.dtype) == packing.dtypes
        assert matrix.values.is_contiguous()
        assert matrix.scales.is_contiguous()
        assert matrix.nbytes == packing.nbytes(shape)
        assert matrix.has_minimum == packing.has_minimum

    @every_packing
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_padding_is_worth_0(self, packing: Packing, shape: tuple[int, int]) -> None:
        matrix = quantize(gaussian(*shape) + 3, packing)
        weights = weights_of(matrix, *padded_shape(matrix, packing))
        assert not weights[shape[0] :].any()
        assert not weights[:, shape[1] :].any()

    @every_packing
    def test_blocks_of_rows(self, packing: Packing) -> None:
        matrix = quantize(gaussian(50, 70), packing)
        whole = matrix.dequantize()
        for start, stop in ((0, 1), (0, 16), (15, 17), (16, 32), (33, 50), (49, 50), (20, 20)):
            assert torch.equal(matrix.dequantize(start, stop), whole[start:stop])
        assert torch.equal(matrix.dequantize(40, 1000), whole[40:])

    @every_packing
    @pytest.mark.parametrize("count", [1, 16, 17, 50, 51, 1000])
    def test_the_first_rows_are_a_view(self, packing: Packing, count: int) -> None:
        matrix = quantize(gaussian(51, 70), packing)
        first = first_rows(matrix, count)
        assert isinstance(first, QuantizedMatrix)
        assert first.shape == (min(count, 51), 70)
        assert torch.equal(first.dequantize(), matrix.dequantize(0, count))
        assert first.values.data_ptr() == matrix.values.data_ptr()
        assert (tuple(first.values.shape), tuple(first.scales.shape)) == packing.shapes(first.shape)

    def test_the_first_rows_of_floats(self) -> None:
        matrix = gaussian(5, 3)
        assert torch.equal(first_rows(matrix, 2), matrix[:2])

    @every_packing
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_any_dtype_and_strides(self, packing: Packing, dtype: torch.dtype) -> None:
        weights = gaussian(40, 100).to(dtype)
        expected = quantize(weights.float(), packing)
        for same in (weights, weights.t().contiguous().t()):
            matrix = quantize(same, packing)
            assert torch.equal(matrix.values, expected.values)
            assert torch.equal(matrix.scales, expected.scales)

    @every_packing
    def test_how_it_is_cut_into_blocks_does_not_matter(
        self, packing: Packing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = quantize(gaussian(70, 150), packing)
        monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 1)
        matrix = quantize(gaussian(70, 150), packing)
        assert torch.equal(matrix.values, expected.values)
        assert torch.equal(matrix.scales, expected.scales)

    @every_packing
    def test_memory_holds_the_result_and_a_few_blocks(
        self, packing: Packing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 1 << 14)
        weights = gaussian(1024, 512).half()
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profiled:
            quantize(weights if packing.layout == "rows" else weights.t(), packing)
        largest = max(event.cpu_memory_usage for event in profiled.events())
        assert largest <= weights.numel()  # a byte a weight is the result in 8 bits


class TestRounding:
    @every_packing
    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
    def test_every_integer_is_the_nearest_for_its_scale(self, packing: Packing, scale: float) -> None:
        weights = gaussian(64, 256) * scale
        matrix = quantize(weights, packing)
        integers = integers_of(matrix, 64, 256)
        half_a_step = scales_of(matrix, 64, 256).abs() / 2
        off = (matrix.dequantize() - weights).abs()
        lowest, highest = (-127, 127) if packing.bits == 8 else (0, 15)
        clipped = (integers == lowest) | (integers == highest)
        assert (off <= half_a_step * 1.001 + 1e-6 * scale)[~clipped].all()
        if packing.bits == 8:
            assert (off <= half_a_step * 1.001).all()

    @pytest.mark.parametrize("layout", ["rows", "units"])
    def test_8_bits_reach_from_end_to_end(self, layout: str) -> None:
        weights = gaussian(64, 256)
        matrix = quantize(weights, packing_of_bits(8, layout))
        integers = integers_of(matrix, 64, 256).abs()
        assert (integers.amax(1 if layout == "rows" else 0) == 127).all()

    @pytest.mark.parametrize("packing", [p for p in PACKINGS if p.bits == 4], ids=name)
    def test_no_group_of_4_bits_is_worse_off_than_with_its_whole_span(self, packing: Packing) -> None:
        weights = torch.cat((gaussian(64, 256), gaussian(64, 256).exp(), gaussian(64, 256) ** 5))
        groups = weights.unflatten(1, (-1, packing.group_size))
        if packing.has_minimum:
            lowest, highest = groups.aminmax(dim=-1, keepdim=True)
            scale, minimum = ((highest - lowest) / 15).half().float(), lowest.half().float()
            naive = ((groups - minimum) / scale).round().clamp(0, 15) * scale + minimum
        else:
            extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
            scale = (extreme / -8).half().float()
            naive = (groups / scale).round().clamp(-8, 7) * scale
        found = quantize(weights, packing).dequantize().unflatten(1, (-1, packing.group_size))
        errors, limits = ((found - groups) ** 2).sum(-1), ((naive - groups) ** 2).sum(-1)
        assert (errors <= limits * 1.02 + 1e-9).all()
        assert errors.sum() < 0.97 * limits.sum()

    @pytest.mark.parametrize(
        ("packing", "most"),
        [(Packing(8, "rows"), 0.009), (Packing(4, "rows", 32), 0.0815), (Packing(4, "rows", 64), 0.0905)],
        ids=["int8", "int4-32", "int4-64"],
    )
    def test_the_error_on_gaussian_weights(self, packing: Packing, most: float) -> None:
        weights = gaussian(256, 4096)
        error = (quantize(weights, packing).dequantize() - weights).square().mean().sqrt()
        assert error < most

    @every_packing
    def test_zeros(self, packing: Packing) -> None:
        weights = gaussian(40, 200)
        weights[3] = 0
        weights[:, 7] = 0
        weights[20:, 64:128] = 0
        found = quantize(weights, packing).dequantize()
        assert not found[3].any()
        assert not found[20:, 64:128].any()
        if not packing.has_minimum:
            assert not found[:, 7].any()
        assert not quantize(torch.zeros(40, 200), packing).dequantize().any()

    @every_packing
    @pytest.mark.parametrize("constant", [1.0, -0.37, 12345.0, 3e-3])
    def test_a_constant(self, packing: Packing, constant: float) -> None:
        found = quantize(torch.full((20, 100), constant), packing).dequantize()
        assert torch.allclose(found, torch.full((20, 100), constant), rtol=2**-11, atol=0)

    @pytest.mark.parametrize("layout", ["rows", "units"])
    def test_one_large_weight_does_not_spoil_other_groups(self, layout: str) -> None:
        weights = gaussian(32, 256)
        weights[5, 70] = 1000.0
        off = (quantize(weights, Packing(4, layout, 32)).dequantize() - weights).abs()
        assert off[5, 70] < 0.5
        off[5, 64:96] = 0
        assert off.max() < 0.5


class TestLimits:
    @every_packing
    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("place", [(0, 0), (69, 149), (35, 64)])
    def test_what_is_not_finite_is_refused(
        self, packing: Packing, bad: float, place: tuple[int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 1)
        weights = gaussian(70, 150)
        weights[place] = bad
        with pytest.raises(QuantizationError, match="has a NaN or an infinity"):
            quantize(weights, packing)

    @every_packing
    @pytest.mark.parametrize("size", [1e-4, 1e-6, 1e-7, 1e-8, 1e-12, 1e-38, 1e-44])
    def test_tiny_weights_are_as_close_as_the_scale_allows(self, packing: Packing, size: float) -> None:
        weights = gaussian(40, 128) * size
        off = (quantize(weights, packing).dequantize() - weights).abs().max().item()
        # float16 goes in steps of 2⁻²⁴ at the least, float32 of 2⁻¹⁴⁹: a scale is off by half of one.
        step, levels, widest = (2**-149, 127, 0.05) if packing.bits == 8 else (2**-24, 8, 0.6)
        assert off <= widest * size + levels * step

    @pytest.mark.parametrize("layout", ["rows", "units"])
    def test_huge_weights_in_8_bits(self, layout: str) -> None:
        weights = gaussian(40, 128).clamp(-3, 3) * 1e38
        found = quantize(weights, packing_of_bits(8, layout)).dequantize()
        assert torch.allclose(found / 1e38, weights / 1e38, atol=0.02)

    @pytest.mark.parametrize("packing", [p for p in PACKINGS if p.bits == 4], ids=name)
    def test_4_bits_end_where_float16_does(self, packing: Packing) -> None:
        limit = LARGEST_HALF if packing.has_minimum else 8 * LARGEST_HALF
        weights = gaussian(20, 128)
        for extreme in (limit, -limit):
            weights[4, 70] = extreme
            found = quantize(weights, packing).dequantize()
            assert found.isfinite().all()
            assert abs(found[4, 70] / extreme - 1) < 0.05
        weights[4, 70] = limit * 1.01
        with pytest.raises(QuantizationError, match=r"holds a weight of magnitude .*; this format ends at"):
            quantize(weights, packing)

    @pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(2, 2, 2), torch.zeros(2, 2).int()])
    def test_what_is_no_matrix_of_floats_is_refused(self, wrong: Tensor) -> None:
        with pytest.raises(QuantizationError, match="expected a matrix"):
            quantize(wrong, Packing(8, "rows"))

    @pytest.mark.parametrize(
        ("bits", "group", "minimum"),
        [(8, 32, False), (8, None, True), (4, None, False), (4, 16, False), (2, 32, False)],
    )
    def test_packings_that_there_are_not(self, bits: int, group: int | None, minimum: bool) -> None:
        with pytest.raises(QuantizationError, match=f"the packing is {bits} bits in groups of {group}"):
            Packing(bits, "rows", group, minimum)


def packing_of_bits(bits: int, layout: str) -> Packing:
    return next(p for p in PACKINGS if (p.bits, p.layout) == (bits, layout))


def test_which_tensors_are_packed_and_how() -> None:
    config = PersimmonConfig()
    layer = "model.layers.3."
    for weights, bits in (("int8", 8), ("int4", 4)):
        packings = {name: packing_of(name, weights) for name in config.tensor_shapes()}
        group = 32 if bits == 4 else None
        for matrix in ("self_attn.query_key_value", "self_attn.dense", "mlp.dense_h_to_4h"):
            assert packings[f"{layer}{matrix}.weight"] == Packing(bits, "rows", group)
        assert packings[layer + "mlp.dense_4h_to_h.weight"] == Packing(bits, "units", group)
        assert packings["lm_head.weight"] == Packing(8, "rows")
        assert sum(packing is not None for packing in packings.values()) == 4 * 36 + 1
        assert packings["model.embed_tokens.weight"] is None

"""Rounding and layouts: what lies where, how far off a weight may be, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from matrices import packed_nibbles
from torch import Tensor

from adept_fast.config import PersimmonConfig
from adept_fast.quantization import rounding
from adept_fast.quantization.formats import FORMATS, MatrixSpec, QuantizationError, WeightFormat, spec_of
from adept_fast.quantization.layout_cpu import TiledMatrix
from adept_fast.quantization.layout_gpu import GpuMatrix
from adept_fast.quantization.layout_plain import RowMajorMatrix
from adept_fast.quantization.matrix import QuantizedMatrix, first_rows, parts_of, quantize, repack

CPU = torch.device("cpu")
LAYOUTS = (TiledMatrix, GpuMatrix, RowMajorMatrix)
SHAPES = [(1, 1), (16, 64), (17, 65), (5, 128), (31, 129), (48, 200), (200, 48), (33, 384), (3, 4160)]


@dataclass(frozen=True)
class Case:
    weights: WeightFormat
    transposed: bool
    layout: type[QuantizedMatrix]

    def spec(self, rows: int, columns: int) -> MatrixSpec:
        return MatrixSpec(self.weights, (rows, columns), self.transposed)

    def quantize(self, matrix: Tensor) -> QuantizedMatrix:
        return quantize(matrix, self.spec(*matrix.shape), self.layout)

    def __str__(self) -> str:
        return f"{self.weights.name}-{self.layout.layout}{'-transposed' * self.transposed}"


CASES = [
    Case(weights, transposed, layout)
    for weights in FORMATS.values()
    for transposed in (False, True)
    for layout in LAYOUTS
    if layout.holds(replace(weights, lm_head=weights.name))
]
ROUNDED = [case for case in CASES if case.layout is RowMajorMatrix]  # rounding knows no layout

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_rounding = pytest.mark.parametrize("case", ROUNDED, ids=str)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def gaussian(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def same_bits(one: QuantizedMatrix, other: QuantizedMatrix) -> bool:
    return all(
        first.shape == second.shape
        and first.dtype == second.dtype
        and torch.equal(first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8))
        for first, second in zip(one.parts, other.parts, strict=True)
    )


def integers_of(matrix: QuantizedMatrix, rows: int, columns: int) -> Tensor:
    """Q of every weight, by the formulas of docs/quantization.md: float64 [rows, columns]."""
    r, c = torch.arange(rows)[:, None], torch.arange(columns)[None]
    values, bits, transposed = matrix.values, matrix.bits, matrix.spec.transposed
    if isinstance(matrix, TiledMatrix) and not transposed:
        if bits == 8:
            return values[r // 16, c // 4, r % 16, c % 4].double()
        packed = values[r // 16, c // 8, r % 16, c % 4]
        return torch.where(c % 8 < 4, packed % 16, packed // 16).double()
    if isinstance(matrix, TiledMatrix):
        # c = 64 · block + 16 · i + 4 · l + b is byte 64 · block + 16 · l + 4 · i + b
        i, quarter, b = c % 64 // 16, c % 16 // 4, c % 4
        byte = 16 * quarter + 4 * i + b
        if bits == 8:
            return values[r, c // 64 * 64 + byte].double()
        packed = values[r, c // 128 * 64 + byte]
        return torch.where(c % 128 < 64, packed % 16, packed // 16).double()
    if bits == 8:
        return values.double()[:, :columns]
    if isinstance(matrix, GpuMatrix):
        word = values.view(torch.int32).to(torch.int64)[r, c // 8]
        return (word >> (16 * (c % 2) + 4 * (c % 8 // 2)) & 15).double()
    packed = values[r, c // 2]
    return torch.where(c % 2 == 0, packed % 16, packed // 16).double()


def scales_of(matrix: QuantizedMatrix, rows: int, columns: int) -> Tensor:
    """The scale of every weight: float64 [rows, columns]."""
    r, c = torch.arange(rows)[:, None], torch.arange(columns)[None]
    group = matrix.spec.format.group_size
    if group is None:
        return matrix.scales[c if matrix.spec.transposed else r].double().expand(rows, columns)
    if isinstance(matrix, TiledMatrix):
        if matrix.spec.transposed:
            return matrix.scales[r, 0, c // 32].double()
        return matrix.scales[r // 16, c // 32, 0, r % 16].double()
    return matrix.scales[r, c // group].double()


def weights_of(matrix: QuantizedMatrix, rows: int, columns: int) -> Tensor:
    """Every weight by the formulas: float64."""
    offset = 8 if matrix.bits == 4 else 0
    return scales_of(matrix, rows, columns) * (integers_of(matrix, rows, columns) - offset)


class TestLayouts:
    @every_case
    @every_shape
    def test_everything_lies_where_the_formulas_say(self, case: Case, shape: tuple[int, int]) -> None:
        matrix = case.quantize(gaussian(*shape))
        found = matrix.dequantize()
        assert found.dtype == torch.float32
        assert torch.equal(found, weights_of(matrix, *shape).float())
        assert matrix.nbytes == case.layout.bytes_of(case.spec(*shape))
        for part, (size, dtype) in zip(matrix.parts, case.layout.stored(matrix.spec), strict=True):
            assert (tuple(part.shape), part.dtype) == (size, dtype)
            assert part.is_contiguous()
        assert parts_of(matrix) == (matrix.values, matrix.scales)
        assert (matrix.shape, matrix.device) == (shape, CPU)

    @every_case
    @every_shape
    def test_padding_is_worth_0(self, case: Case, shape: tuple[int, int]) -> None:
        matrix = case.quantize(gaussian(*shape) + 3)
        rows, columns = shape
        if isinstance(matrix, TiledMatrix):
            multiple = 128 if case.transposed else 64
            columns = -(-columns // multiple) * multiple
            rows = rows if case.transposed else -(-rows // 16) * 16
        else:
            columns = matrix.spec.padded_columns
        weights = weights_of(matrix, rows, columns)
        assert not weights[shape[0] :].any()
        assert not weights[:, shape[1] :].any()

    @every_case
    @every_shape
    def test_repacking_gives_the_bits_of_packing_floats(self, case: Case, shape: tuple[int, int]) -> None:
        """In either direction, so what a file holds is what loading floats packs."""
        floats = gaussian(*shape).bfloat16()
        plain = quantize(floats, case.spec(*shape), RowMajorMatrix)
        packed = case.quantize(floats)
        repacked = repack(plain, case.layout, CPU)
        assert isinstance(repacked, case.layout)
        assert same_bits(repacked, packed)
        assert repacked.spec == packed.spec
        assert same_bits(repack(packed, RowMajorMatrix, CPU), plain)
        assert repack(packed, case.layout, CPU).values.data_ptr() == packed.values.data_ptr()

    @every_case
    def test_rows(self, case: Case) -> None:
        matrix = case.quantize(gaussian(51, 70))
        whole = matrix.dequantize()
        for start, stop in ((0, 1), (0, 16), (15, 17), (16, 32), (33, 51), (50, 51), (20, 20)):
            assert torch.equal(matrix.dequantize(start, stop), whole[start:stop])
        assert torch.equal(matrix.dequantize(40, 1000), whole[40:])
        for count in (1, 16, 17, 50, 51, 1000):
            first = first_rows(matrix, count)
            assert isinstance(first, case.layout)
            assert first.shape == (min(count, 51), 70)
            assert torch.equal(first.dequantize(), whole[:count])
            assert first.values.data_ptr() == matrix.values.data_ptr()
            for part, (size, _) in zip(first.parts, case.layout.stored(first.spec), strict=True):
                assert tuple(part.shape) == size
        assert torch.equal(first_rows(whole, 2), whole[:2])

    @every_case
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_any_dtype_strides_and_blocks(
        self, case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        weights = gaussian(70, 150).to(dtype)
        expected = case.quantize(weights.float())
        monkeypatch.setattr(rounding, "_BLOCK_ELEMENTS", {"cpu": 1})
        for same in (weights, weights.t().contiguous().t()):
            found = case.quantize(same)
            assert same_bits(found, expected)
            bfloat16 = dtype == torch.bfloat16
            assert found.spec.product_dtype == (torch.bfloat16 if bfloat16 else torch.float16)

    @pytest.mark.slow
    @pytest.mark.parametrize("case", CASES[:: len(LAYOUTS) + 1], ids=str)
    def test_memory_holds_the_result_and_a_few_blocks(
        self, case: Case, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rounding, "_BLOCK_ELEMENTS", {"cpu": 1 << 14})
        weights = gaussian(512, 512).half()
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profiled:
            packed = case.quantize(weights.t() if case.transposed else weights)
            repack(packed, RowMajorMatrix, CPU)
        largest = max(event.cpu_memory_usage for event in profiled.events())
        assert largest <= weights.numel()  # a byte a weight is the result in 8 bits

    def test_a_group_of_128_on_a_cpu_is_four_groups_of_32(self) -> None:
        spec = MatrixSpec(FORMATS["int4-g128"], (33, 320))
        packed = quantize(gaussian(33, 320), spec, TiledMatrix)
        scales = packed.scales[:, :, 0]  # [tiles, groups of 32, 16]
        assert scales.shape[1] == 10
        for group in range(10):
            assert torch.equal(scales[:, group], scales[:, group // 4 * 4])
        smaller = TiledMatrix.bytes_of(MatrixSpec(FORMATS["int4-g32"], (33, 320)))
        assert packed.nbytes == smaller

    def test_nibbles_lie_as_the_tests_of_the_cuda_kernels_have_them(self) -> None:
        rounded = torch.randint(0, 16, (5, 256), dtype=torch.uint8)
        packed = GpuMatrix.join_nibbles(rounded)
        assert torch.equal(packed, packed_nibbles(rounded.long()))
        for layout in (GpuMatrix, RowMajorMatrix):
            assert torch.equal(layout.split_nibbles(layout.join_nibbles(rounded)), rounded)

    @pytest.mark.parametrize("case", [case for case in CASES if case.layout is GpuMatrix], ids=str)
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_floats_for_many_tokens(self, case: Case, dtype: torch.dtype) -> None:
        matrix = case.quantize(gaussian(40, 130))
        assert isinstance(matrix, GpuMatrix)
        unscaled = matrix.unscaled(3, None, dtype)
        assert unscaled.dtype == dtype
        if matrix.bits == 8:
            assert torch.equal(unscaled, matrix.values[3:].to(dtype))
        else:
            torch.testing.assert_close(unscaled.float(), matrix.dequantize(3), rtol=2**-7, atol=1e-30)

    def test_float8_has_no_order_for_a_cpu(self) -> None:
        assert not TiledMatrix.holds(FORMATS["fp8"])
        assert GpuMatrix.holds(FORMATS["fp8"])
        with pytest.raises(QuantizationError, match="fp8 has no layout for a CPU"):
            quantize(gaussian(16, 64), MatrixSpec(FORMATS["fp8"], (16, 64)), TiledMatrix)


class TestRounding:
    @every_rounding
    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
    def test_every_integer_is_the_nearest_for_its_scale(self, case: Case, scale: float) -> None:
        weights = gaussian(64, 256) * scale
        matrix = case.quantize(weights)
        integers, scales = integers_of(matrix, 64, 256), scales_of(matrix, 64, 256).abs()
        off = (matrix.dequantize() - weights).abs()
        if case.weights.name == "fp8":
            # Three bits of mantissa, and steps of 2⁻⁹ near 0.
            assert (off <= weights.abs() / 16 * 1.001 + scales * 2**-10).all()
            return
        lowest, highest = (-127, 127) if matrix.bits == 8 else (0, 15)
        clipped = (integers == lowest) | (integers == highest)
        assert (off <= scales / 2 * 1.001 + 1e-6 * scale)[~clipped].all()
        if matrix.bits == 8:
            assert (off <= scales / 2 * 1.001).all()

    @pytest.mark.parametrize("case", [case for case in ROUNDED if case.weights.bits == 8], ids=str)
    def test_8_bits_reach_from_end_to_end(self, case: Case) -> None:
        integers = integers_of(case.quantize(gaussian(64, 256)), 64, 256).abs()
        assert (integers.amax(0 if case.transposed else 1) == case.weights.max_value).all()

    @pytest.mark.parametrize("case", [case for case in ROUNDED if case.weights.bits == 4], ids=str)
    def test_no_group_is_worse_off_than_with_its_whole_span(self, case: Case) -> None:
        weights = torch.cat((gaussian(64, 256), gaussian(64, 256).exp(), gaussian(64, 256) ** 3))
        groups = weights.unflatten(1, (-1, case.weights.group_size))
        extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
        scale = (extreme / -8).half().float()
        naive = (groups / scale).round().clamp(-8, 7) * scale
        found = case.quantize(weights).dequantize().unflatten(1, (-1, case.weights.group_size))
        errors, limits = ((found - groups) ** 2).sum(-1), ((naive - groups) ** 2).sum(-1)
        assert (errors <= limits * 1.02 + 1e-9).all()
        assert errors.sum() < 0.97 * limits.sum()

    @pytest.mark.parametrize(
        ("weights", "limit"), [("int8", 0.009), ("fp8", 0.027), ("int4-g32", 0.0815), ("int4-g128", 0.102)]
    )
    def test_the_error_on_gaussian_weights(self, weights: str, limit: float) -> None:
        floats = gaussian(256, 4096)
        packed = quantize(floats, MatrixSpec(FORMATS[weights], (256, 4096)), RowMajorMatrix)
        assert (packed.dequantize() - floats).square().mean().sqrt() < limit

    @every_rounding
    def test_zeros_and_constants(self, case: Case) -> None:
        weights = gaussian(40, 200)
        weights[3] = 0
        weights[:, 7] = 0
        weights[20:, 64:160] = 0
        found = case.quantize(weights).dequantize()
        assert not found[weights == 0].any()
        assert not case.quantize(torch.zeros(40, 200)).dequantize().any()
        for constant in (1.0, -0.37, 12345.0, 3e-3):
            found = case.quantize(torch.full((20, 200), constant)).dequantize()
            assert torch.allclose(found, torch.full((20, 200), constant), rtol=2**-11, atol=0)

    @every_rounding
    def test_what_was_unpacked_is_packed_as_it_was(self, case: Case) -> None:
        if case.weights.name == "int8":
            pytest.skip("its scales have 24 bits, so a product need not be exact")
        for size in (1e-2, 1.0, 300.0):
            weights = case.quantize(gaussian(65, 300) * size).dequantize()
            assert torch.equal(case.quantize(weights).dequantize(), weights)

    @pytest.mark.parametrize("transposed", [False, True])
    def test_one_large_weight_does_not_spoil_other_groups(self, transposed: bool) -> None:
        weights = gaussian(32, 256)
        weights[5, 70] = 1000.0
        packed = quantize(weights, MatrixSpec(FORMATS["int4-g32"], (32, 256), transposed), RowMajorMatrix)
        off = (packed.dequantize() - weights).abs()
        assert off[5, 70] < 0.5
        off[5, 64:96] = 0
        assert off.max() < 0.5


class TestLimits:
    @every_rounding
    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("at", [(0, 0), (69, 149), (35, 64)])
    def test_what_is_not_finite_is_refused(
        self, case: Case, bad: float, at: tuple[int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rounding, "_BLOCK_ELEMENTS", {"cpu": 1})
        weights = gaussian(70, 150)
        weights[at] = bad
        with pytest.raises(QuantizationError, match="has a NaN or an infinity"):
            case.quantize(weights)

    @every_rounding
    @pytest.mark.parametrize("size", [1e-4, 1e-6, 1e-7, 1e-8, 1e-12, 1e-38, 1e-44])
    def test_tiny_weights_are_as_close_as_the_scale_allows(self, case: Case, size: float) -> None:
        weights = gaussian(40, 128) * size
        off = (case.quantize(weights).dequantize() - weights).abs().max().item()
        # float16 goes in steps of 2⁻²⁴ at the least, float32 of 2⁻¹⁴⁹, scales of fp8 of 2⁻¹⁴⁵.
        widest, step = {
            "int8": (0.05, 2**-149 * 127),
            "fp8": (0.25, 2**-145 * 448),
        }.get(case.weights.name, (1.0, 2**-24 * 8))
        assert off <= widest * size + step

    @every_rounding
    def test_huge_weights(self, case: Case) -> None:
        limit = case.weights.max_weight * (0.9 if case.weights.bits == 8 else 1)
        weights = gaussian(40, 128).clamp(-3, 3) * (limit / 8)
        weights[4, 70] = limit
        found = case.quantize(weights).dequantize()
        assert found.isfinite().all()
        assert abs(found[4, 70] / limit - 1) < 0.2  # at most clipped by the narrowest span
        if case.weights.bits == 4:
            assert found.half().isfinite().all()
            weights[4, 70] = 40000
            with pytest.raises(QuantizationError, match="of magnitude 40000; this format ends at 32768"):
                case.quantize(weights)

    @pytest.mark.parametrize(
        "wrong", [torch.zeros(3), torch.zeros(2, 2, 2), torch.zeros(2, 2).int(), torch.zeros(2, 3)]
    )
    def test_what_is_no_matrix_of_floats_is_refused(self, wrong: Tensor) -> None:
        with pytest.raises(QuantizationError, match=r"expected a matrix of floats, \[2, 2\]"):
            quantize(wrong, MatrixSpec(FORMATS["int8"], (2, 2)), TiledMatrix)


@pytest.mark.parametrize("weights", FORMATS.values(), ids=FORMATS)
def test_which_tensors_are_packed_and_how(weights: WeightFormat) -> None:
    config = PersimmonConfig()
    layer = "model.layers.3."
    specs = {name: spec_of(name, shape, weights) for name, shape in config.tensor_shapes().items()}
    hidden, inner = config.hidden_size, config.intermediate_size
    for matrix, shape in (
        ("self_attn.query_key_value", (3 * hidden, hidden)),
        ("self_attn.dense", (hidden, hidden)),
        ("mlp.dense_h_to_4h", (inner, hidden)),
    ):
        assert specs[f"{layer}{matrix}.weight"] == MatrixSpec(weights, shape)
    assert specs[layer + "mlp.dense_4h_to_h.weight"] == MatrixSpec(weights, (inner, hidden), transposed=True)
    head = specs["lm_head.weight"]
    assert head is not None
    assert head.format.bits == 8
    assert sum(spec is not None for spec in specs.values()) == 4 * 36 + 1
    assert specs["model.embed_tokens.weight"] is None

"""Products in tiles of rows: the tiles that a matrix gets, and that a row has the same bits in each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from dispatch_double import as_cuda
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adept_fast import ops
from adept_fast.ops import cuda_gemm, row_tiles
from adept_fast.ops.cuda_gemm import CudaGemm
from adept_fast.ops.row_tiles import in_tiles, largest_tile, tiles_of
from adept_fast.quantization.formats import FORMATS, MatrixSpec
from adept_fast.quantization.layout_gpu import GpuMatrix
from adept_fast.quantization.matrix import Matrix, quantize

ON_A_GPU = "cuda"
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that this torch can use")
SHAPES = ((96, 64), (64, 256))  # outputs, inputs
FORMATS_OF_A_GPU = ("float32", "float16", "bfloat16", "int8", "fp8", "int4-g32", "int4-g128")


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    row_tiles.forget()
    yield
    row_tiles.forget()


class Multiply:
    """A GEMM that adds up in another order for the numbers of rows in ``odd``, and records all numbers."""

    def __init__(self, *odd: int) -> None:
        self.odd = odd
        self.rows: list[int] = []

    def __call__(self, x: Tensor, w: Matrix) -> Tensor:
        assert isinstance(w, Tensor)
        self.rows.append(len(x))
        sums = torch.zeros(len(x), len(w), dtype=x.dtype)
        for at in sorted(range(x.shape[1]), reverse=len(x) in self.odd):
            sums = sums + x[:, at, None] * w[:, at]
        return sums


def multiplied(multiply: Multiply, x: Tensor, w: Tensor | None = None, few: int = 0) -> Tensor:
    """The rows of a product in tiles, behind which the padding is NaN."""
    w = W if w is None else w
    tiles = tiles_of(multiply, len(x), w, 10, (50, x.dtype), few)
    padded = x.new_full((sum(tiles), 50), float("nan"))
    padded[: len(x)] = x
    return in_tiles(multiply, padded, w, tiles)[: len(x)]


W = torch.randn(10, 50, generator=torch.Generator().manual_seed(1))
X = torch.randn(1100, 50, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("odd", "rows", "tile"),
    [
        ((), 1, 64),
        ((), 64, 64),
        ((), 65, 128),
        ((), 256, 256),
        ((), 257, 512),
        ((64,), 1, 128),
        ((64, 128), 1, 256),
        ((128,), 64, 64),
        ((128,), 65, 256),
        ((64, 128, 256), 3, 512),
        ((512,), 3, 512),
    ],
)
def test_the_smallest_tile_with_the_bits_of_the_largest(odd: tuple[int, ...], rows: int, tile: int) -> None:
    multiply = Multiply(*odd)
    first = multiplied(multiply, X[:rows])
    multiply.rows.clear()
    assert torch.equal(multiplied(multiply, X[:rows]), first)
    assert multiply.rows == [tile]
    assert first.shape == (rows, 10)
    assert torch.equal(first, multiplied(multiply, X[:512])[:rows])


@pytest.mark.parametrize("odd", [(), (64,), (128, 512), (64, 128, 256)])
def test_no_number_of_rows_changes_a_bit(odd: tuple[int, ...]) -> None:
    multiply = Multiply(*odd)
    whole = multiplied(multiply, X)
    torch.testing.assert_close(whole, X @ W.T)

    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 1099), st.integers(0, 600))
    def holds(start: int, rows: int) -> None:
        assert torch.equal(multiplied(multiply, X[start : start + rows]), whole[start : start + rows])

    holds()


def test_a_trial_is_made_once_for_a_shape_and_leaves_the_random_state() -> None:
    multiply, state = Multiply(), torch.random.get_rng_state()
    trial = [512, *[64] * 8, *[128] * 4, *[256] * 2]
    multiplied(multiply, X[:512])
    assert multiply.rows == [512]  # a whole tile needs none
    for rows in (5, 100):
        multiplied(multiply, X[:rows])
        multiplied(multiply, X[:rows], W + 1)
    assert multiply.rows == [512, *trial, 64, 64, 128, 128]
    multiplied(multiply, X[:5].double(), W.double())
    assert multiply.rows[-16:] == [*trial, 64]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_no_trial_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    multiply = Multiply()
    monkeypatch.setattr(row_tiles, "_is_captured", lambda device: True)
    multiplied(multiply, X[:5])
    assert multiply.rows == [512]
    monkeypatch.undo()
    multiplied(multiply, X[:5])
    assert multiply.rows[-1] == 64


def test_few_rows_have_a_tile_of_their_own() -> None:
    multiply = Multiply(16)
    for rows in range(1, 17):
        multiplied(multiply, X[:rows], few=16)
    assert multiply.rows == [16] * 16
    multiplied(multiply, X[:17], few=16)
    assert multiply.rows[-1] == 64


def test_what_a_padded_row_holds_does_not_matter() -> None:
    """Memory that is not written to may hold NaNs."""
    multiply = Multiply()
    found = multiplied(multiply, X[:5])
    assert torch.isfinite(found).all()
    assert multiplied(multiply, X[:0]).shape == (0, 10)


@pytest.mark.parametrize(
    ("outputs", "rows"), [(1, 512), (16384, 512), (16385, 256), (65536, 128), (131072, 64), (262144, 64)]
)
def test_many_outputs_have_small_tiles(outputs: int, rows: int) -> None:
    assert largest_tile(outputs) == rows


def matrix(fmt: str, outputs: int, inputs: int, transposed: bool) -> Matrix:
    shape = (inputs, outputs) if transposed else (outputs, inputs)
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(3)) / inputs**0.5
    if fmt in FORMATS:
        return quantize(drawn, MatrixSpec(FORMATS[fmt], shape, transposed), GpuMatrix)
    return drawn.to(getattr(torch, fmt))


def moved(w: Matrix, device: str) -> Matrix:
    return w.to(torch.device(device))


def products(gemm: CudaGemm, transposed: bool) -> Callable[[Tensor, Matrix], Tensor]:
    return gemm.project_transposed if transposed else gemm.project


@pytest.mark.parametrize("fmt", FORMATS_OF_A_GPU)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("device", ["cpu", pytest.param(ON_A_GPU, marks=on_a_gpu)])
def test_a_prompt_has_the_bits_of_each_of_its_tokens(device: str, transposed: bool, fmt: str) -> None:
    """On a CPU by the same code; its GEMM has one order of so small products for a number of rows, too."""
    for outputs, inputs in SHAPES:
        w = moved(matrix(fmt, outputs, inputs, transposed), device)
        x = torch.randn(600, inputs, generator=torch.Generator().manual_seed(4)).abs().to(device)
        prompt = products(cuda_gemm.prefill_gemm, transposed)
        whole = prompt(x, w)
        for start, rows in ((0, 1), (599, 1), (37, 16), (3, 64), (511, 2), (90, 130), (1, 500), (88, 512)):
            assert torch.equal(prompt(x[start : start + rows], w), whole[start : start + rows])
        few = products(cuda_gemm.gemm, transposed)
        step = few(x[:16], w)
        for at in range(16):
            assert torch.equal(few(x[at : at + 1], w), step[at : at + 1])
        assert torch.equal(few(x[:17], w), whole[:17])


@on_a_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("outputs", "inputs", "transposed"),
    [(12288, 4096, False), (4096, 4096, False), (16384, 4096, False), (4096, 16384, True)],
)
def test_the_products_of_the_8b(outputs: int, inputs: int, transposed: bool, dtype: torch.dtype) -> None:
    """Of which some have another order for few rows than for many."""
    shape = (inputs, outputs) if transposed else (outputs, inputs)
    generator = torch.Generator(ON_A_GPU).manual_seed(5)
    w = torch.randn(shape, generator=generator, dtype=dtype, device=ON_A_GPU) / inputs**0.5
    x = torch.randn(700, inputs, generator=generator, dtype=torch.float32, device=ON_A_GPU).abs()
    prompt, few = (products(gemm, transposed) for gemm in (cuda_gemm.prefill_gemm, cuda_gemm.gemm))
    whole, step = prompt(x, w), few(x[:16], w)
    for start, rows in ((0, 1), (699, 1), (30, 40), (100, 64), (7, 100), (300, 200), (1, 257), (188, 512)):
        assert torch.equal(prompt(x[start : start + rows], w), whole[start : start + rows]), rows
    assert torch.equal(torch.cat([few(x[at : at + 1], w) for at in range(16)]), step)


def test_prompts_are_multiplied_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the weights, and one token too."""
    taken: list[tuple[int, int]] = []

    def record(product: Any, tokens: int, w: Matrix, outputs: int, inputs: Any, few: int = 0) -> list[int]:
        taken.append((tokens, few))
        return tiles_of(product, tokens, w, outputs, inputs, few)

    monkeypatch.setattr(cuda_gemm, "tiles_of", record)
    norm = torch.ones(64), torch.zeros(64), 1e-5
    with as_cuda(None, "no kernels"):
        for fmt in FORMATS_OF_A_GPU:
            w, w_t = matrix(fmt, 64, 64, False), matrix(fmt, 64, 64, True)
            gemm = ops.prefill_gemm(w)
            assert gemm is cuda_gemm.prefill_gemm
            for tokens in (1, 17):
                x = torch.zeros(tokens, 64)
                gemm.layernorm_qkv(x, *norm, w, torch.zeros(64))
                gemm.linear_residual(x, w, torch.zeros(64), x)
                gemm.mlp(x, *norm, w, torch.zeros(64), w_t, torch.zeros(64), None)
                gemm.lm_head(x, *norm, w)
                assert taken == [(tokens, 0)] * 5
                taken.clear()
        ops.lm_head(torch.zeros(3, 64), *norm, matrix("float32", 64, 64, False))
    assert taken == [(3, 16)]

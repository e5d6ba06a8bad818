"""layernorm_qkv, linear_residual and lm_head in C++ against float64, in every format and instruction set."""

from __future__ import annotations

import native
import pytest
import torch
import torch.nn.functional as F
from closeness import assert_close, product_size
from native import EPS, call
from native import settled as settled
from torch import Tensor

from adept_fast import ops
from adept_fast.quantization.matrix import first_rows

NAN, INFINITY = float("nan"), float("inf")

# tokens, inputs, rows: every block of tokens, tails of 16 lanes, padding to 64, whole and part tiles of 16
# rows, and enough of both for several tasks
SHAPES = [
    (1, 64, 192),
    (2, 80, 33),
    (3, 96, 1),
    (5, 192, 15),
    (6, 1000, 47),
    (7, 64, 300),
    (13, 80, 530),
    (16, 96, 17),
    (17, 1000, 40),
    (64, 192, 65),
    (1, 1000, 100),
    (2, 2048, 31),
    (6, 4160, 35),
    (1, 4160, 81),
    (4, 8, 5),
    (1, 1, 1),
    (3, 65, 16),
]
if native.THIN:
    SHAPES = [(1, 80, 33), (2, 64, 300), (7, 1000, 47), (17, 33, 18)]


def inputs(tokens: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(tokens, columns) * 3 + 1).to(dtype)


def product(x: Tensor, w: native.Weights, fmt: str) -> Tensor:
    """What torch makes of it, with inputs in bfloat16 beside packed weights."""
    return F.linear(native.as_inputs(x.float(), fmt), w.exact.float())


def assert_in_fixed_point(
    ours: Tensor, exact: Tensor, inputs: Tensor, w: native.Weights, terms: Tensor, what: object
) -> None:
    """Packed weights: what half a step of each input can do, and float32's rounding of all that is summed."""
    if w.is_packed:
        bound = native.fixed_point_error(inputs, w.exact) + 8 * native.EPS32 * terms.double().abs()
        narrowed = torch.finfo(ours.dtype).eps * exact.abs() if ours.dtype != torch.float32 else 0
        native.assert_within(ours, exact, bound + narrowed, what)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["from float32", "from bfloat16"])
@native.every_format
@native.every_set
def test_layernorm_qkv(isa: str, fmt: str, dtype: torch.dtype) -> None:
    for shape in SHAPES if dtype == torch.float32 else SHAPES[:6]:
        tokens, hidden, rows = shape
        x, (gamma, beta), b = inputs(tokens, hidden, dtype), native.norm(hidden), torch.randn(rows)
        w = native.weights(fmt, rows, hidden)
        with native.using(isa):
            ours = call.layernorm_qkv(x, gamma, beta, EPS, *w.parts, b)
        assert ours.dtype == dtype
        normed = native.layernorm64(x, gamma, beta)
        exact = normed @ w.exact.T + b.double()
        theirs = (product(native.layernorm32(x, gamma, beta), w, fmt) + b).to(dtype)
        size = product_size(normed, w.exact) + b.abs()
        assert_close(ours, exact, theirs, size, shape, native.input_dtype(fmt))
        assert_in_fixed_point(ours, exact, normed, w, b, shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["from float32", "from bfloat16"])
@native.every_format
@native.every_set
def test_linear_residual(isa: str, fmt: str, dtype: torch.dtype) -> None:
    for shape in SHAPES if dtype == torch.float32 else SHAPES[:6]:
        tokens, columns, rows = shape
        x, residual = inputs(tokens, columns, dtype), torch.randn(tokens, rows).to(dtype)
        w, b = native.weights(fmt, rows, columns), torch.randn(rows)
        with native.using(isa):
            ours = call.linear_residual(x, *w.parts, b, residual)
        assert ours.dtype == dtype
        exact = x.double() @ w.exact.T + b.double() + residual.double()
        theirs = (product(x, w, fmt) + b + residual.float()).to(dtype)
        terms = b.abs() + residual.float().abs()
        size = product_size(x, w.exact) + terms
        assert_close(ours, exact, theirs, size, shape, native.input_dtype(fmt))
        assert_in_fixed_point(ours, exact, x, w, terms, shape)


@native.every_format
@native.every_set
def test_lm_head(isa: str, fmt: str) -> None:
    for shape in SHAPES:
        tokens, hidden, rows = shape
        x, (gamma, beta) = inputs(tokens, hidden), native.norm(hidden)
        w = native.weights(fmt, rows, hidden)
        with native.using(isa):
            ours = call.lm_head(x, gamma, beta, EPS, *w.parts, rows)
        normed = native.layernorm64(x, gamma, beta)
        exact = normed @ w.exact.T
        theirs, size = product(native.layernorm32(x, gamma, beta), w, fmt), product_size(normed, w.exact)
        assert_close(ours, exact, theirs, size, shape, native.input_dtype(fmt))
        assert_in_fixed_point(ours, exact, normed, w, torch.zeros(rows), shape)


@native.every_format
@native.every_set
@pytest.mark.parametrize("count", [1, 15, 16, 17, 48, 49, 50])
def test_lm_head_of_a_pruned_vocabulary(isa: str, fmt: str, count: int) -> None:
    """The first rows of a matrix give the first logits of all, in float32 whatever x is."""
    x, (gamma, beta) = inputs(2, 96), native.norm(96)
    w = native.weights(fmt, 50, 96)
    pruned = native.parts(first_rows(w.matrix, count))
    with native.using(isa):
        whole = call.lm_head(x, gamma, beta, EPS, *w.parts, 50)
        assert torch.equal(call.lm_head(x, gamma, beta, EPS, *pruned, count), whole[:, :count])
        assert call.lm_head(x.bfloat16(), gamma, beta, EPS, *pruned, count).dtype == torch.float32


@native.every_format
@native.every_set
def test_a_token_gets_what_it_gets_alone(isa: str, fmt: str) -> None:
    """Its neighbours do not matter: what follows must not depend on how tokens are cut into blocks."""
    x, w = inputs(19, 200), native.weights(fmt, 37, 200)
    b, residual = torch.randn(37), torch.randn(19, 37)
    with native.using(isa):
        together = call.linear_residual(x, *w.parts, b, residual)
        for token in range(19):
            one = slice(token, token + 1)
            alone = call.linear_residual(x[one], *w.parts, b, residual[one])
            if fmt in native.PACKED:
                assert torch.equal(alone, together[one])
            else:
                torch.testing.assert_close(alone, together[one], atol=1e-5, rtol=1e-5)


@native.every_format
@native.every_set
def test_outliers_zeros_and_scales(isa: str, fmt: str) -> None:
    """One large input among small ones, tokens of zeros, numbers near the ends of float32, rows of zeros."""
    columns, rows = 192, 33
    values = torch.randn(rows, columns) / columns**0.5
    values[[0, 7, 32]] = 0
    w, b = native.weights_of(fmt, values), torch.randn(rows)
    x = torch.randn(8, columns)
    x[0, 70], x[1, 191], x[2] = 1e4, -3e6, 0
    x[3] *= 1e30
    x[4] *= 1e-30
    x[5], x[5, 3] = 0, 1.0
    x[6] = 2.5  # every input the largest
    residual = torch.zeros(8, rows)
    with native.using(isa):
        ours = call.linear_residual(x, *w.parts, torch.zeros(rows), residual)
        shifted = call.linear_residual(x, *w.parts, b, residual)
    exact = x.double() @ w.exact.T
    bound = native.fixed_point_error(x, w.exact)
    if fmt in native.FLOATS:
        bound = 8 * native.EPS32 * (x.double().abs() @ w.exact.abs().T)
    native.assert_within(ours, exact, bound)
    assert not ours[:, [0, 7, 32]].any()
    assert not ours[2].any()
    assert torch.equal(shifted[2], b)


@native.every_format
@native.every_set
@pytest.mark.parametrize("bad", [NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_what_is_not_finite_stays_with_its_token(isa: str, fmt: str, bad: float, tokens: int) -> None:
    columns, rows = 80, 33
    x, (gamma, beta), b = inputs(tokens, columns), native.norm(columns), torch.randn(rows)
    w, residual = native.weights(fmt, rows, columns), torch.randn(tokens, rows)
    place = (tokens - 1, 79)
    poisoned = x.clone()
    poisoned[place] = bad
    with native.using(isa):
        for run in (
            lambda x: call.layernorm_qkv(x, gamma, beta, EPS, *w.parts, b),
            lambda x: call.lm_head(x, gamma, beta, EPS, *w.parts, rows),
            lambda x: call.linear_residual(x, *w.parts, b, residual),
        ):
            clean, found = run(x), run(poisoned)
            assert torch.equal(clean[:-1], found[:-1])
            assert not found[-1].isfinite().any()


@native.every_format
@native.every_set
def test_padding_is_worth_nothing(isa: str, fmt: str) -> None:
    """Inputs past the last column count as 0, whatever a workspace held before."""
    w, b = native.weights(fmt, 20, 70), torch.zeros(20)
    x = inputs(3, 70)
    with native.using(isa):
        first = call.linear_residual(x, *w.parts, b, torch.zeros(3, 20))
        for filler in (NAN, 1e30):
            other = native.weights(fmt, 20, 128)
            call.linear_residual(torch.full((3, 128), filler), *other.parts, b, torch.zeros(3, 20))
            assert torch.equal(call.linear_residual(x, *w.parts, b, torch.zeros(3, 20)), first)


@native.every_format
@native.every_set
@pytest.mark.parametrize(("tokens", "columns", "rows"), [(1, 4160, 81), (33, 96, 2100)])
def test_threads_change_no_bit(isa: str, fmt: str, tokens: int, columns: int, rows: int) -> None:
    x, w, b = inputs(tokens, columns), native.weights(fmt, rows, columns), torch.randn(rows)
    residual = torch.randn(tokens, rows)
    with native.using(isa):
        alone = call.linear_residual(x, *w.parts, b, residual)
        for count in (2, 5):
            with native.threads(count):
                assert torch.equal(call.linear_residual(x, *w.parts, b, residual), alone)


@native.every_set
@pytest.mark.parametrize("fmt", native.PACKED)
def test_sums_hold_the_largest_inputs_there_may_be(isa: str, fmt: str) -> None:
    """65536 inputs at the ends of both bytes and of the weights' range: nothing overflows or saturates."""
    columns = 65536
    signs = torch.ones(columns)
    signs[columns // 2 :] = -1
    w = native.weights_of(fmt, torch.stack((torch.ones(columns), -torch.ones(columns), signs)))
    largest = 127 * 256
    low_end = torch.full((columns,), 126 * 256 - 128.0)  # high 126, low -128
    low_end[0] = largest
    x = torch.stack((torch.full((columns,), float(largest)), signs * largest, low_end, -low_end))
    with native.using(isa):
        ours = call.linear_residual(x, *w.parts, torch.zeros(3), torch.zeros(4, 3))
    exact = x.double() @ w.exact.T
    rounding = 2000 * native.EPS32 if fmt == "int4" else 4 * native.EPS32  # one for each group
    native.assert_within(ours, exact, rounding * (x.double().abs() @ w.exact.abs().T))


@pytest.mark.parametrize("fmt", native.PACKED)
def test_instruction_sets_agree_bit_for_bit(fmt: str) -> None:
    """Integer sums have no order. Without a fused multiply-add, 4 bits' sums of groups round once more."""
    for tokens, columns, rows in SHAPES:
        x, w = inputs(tokens, columns), native.weights(fmt, rows, columns)
        found = {}
        for isa in native.INSTRUCTION_SETS:
            with native.using(isa):
                found[isa] = call.linear_residual(x, *w.parts, torch.zeros(rows), torch.zeros(tokens, rows))
        best = found[native.INSTRUCTION_SETS[0]]
        for isa, result in found.items():
            if isa != "portable" or fmt == "int8":
                assert torch.equal(result, best), (isa, tokens, columns, rows)
            else:
                torch.testing.assert_close(result, best, atol=2e-5, rtol=0)


@native.every_format
def test_inputs_need_not_be_contiguous(fmt: str) -> None:
    w, b, (gamma, beta) = native.weights(fmt, 24, 24), torch.randn(24), native.norm(24)
    wide = inputs(5, 48)
    for x in (wide[:, ::2], wide[:, 24:], inputs(24, 5).t()):
        same = x.contiguous()
        assert torch.equal(
            call.layernorm_qkv(x, gamma, beta, EPS, *w.parts, b),
            call.layernorm_qkv(same, gamma, beta, EPS, *w.parts, b),
        )
        assert torch.equal(
            call.linear_residual(x, *w.parts, b, x), call.linear_residual(same, *w.parts, b, same)
        )


@native.every_format
@pytest.mark.parametrize("tokens", [16, 17, 40])
def test_the_operators_python_calls(fmt: str, tokens: int) -> None:
    """With more than 16 tokens torch's GEMM may take over, rounding inputs to the weights' dtype."""
    x, (gamma, beta), b = inputs(tokens, 80), native.norm(80), torch.randn(50)
    w, residual = native.weights(fmt, 50, 80), torch.randn(tokens, 50)
    normed, normed32 = native.layernorm64(x, gamma, beta), native.layernorm32(x, gamma, beta)

    def theirs(inputs: Tensor) -> Tensor:
        rounded = inputs.bfloat16().float() if fmt in (*native.PACKED, "bfloat16") else inputs
        return F.linear(rounded, w.exact.float())

    size, size_of_x = product_size(normed, w.exact), product_size(x, w.exact)
    cases = [
        (
            ops.layernorm_qkv(x, gamma, beta, EPS, w.matrix, b),
            normed @ w.exact.T + b,
            theirs(normed32) + b,
            size + b.abs(),
        ),
        (ops.lm_head(x, gamma, beta, EPS, w.matrix), normed @ w.exact.T, theirs(normed32), size),
        (
            ops.linear_residual(x, w.matrix, b, residual),
            x.double() @ w.exact.T + b + residual,
            theirs(x) + b + residual,
            size_of_x + b.abs() + residual.abs(),
        ),
    ]
    rounded_to = torch.bfloat16 if fmt == "bfloat16" else native.input_dtype(fmt)
    for ours, exact, by_torch, size_of_case in cases:
        assert ours.dtype == torch.float32
        rounded = by_torch.to(torch.bfloat16).float() if fmt == "bfloat16" else by_torch
        assert_close(ours, exact, rounded, size_of_case, fmt, rounded_to)

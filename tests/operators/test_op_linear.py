"""layernorm_qkv, linear_residual and lm_head against float64, in every format of every backend."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backends import BACKENDS, CPU, CUDA, EPS, FLOATS, KERNELS, THIN, Backend, in_formats, on, parameter
from closeness import assert_close, product_size
from matrices import (
    EPS32,
    Expected,
    Weights,
    assert_within,
    layernorm32,
    layernorm64,
    norm,
    product_bound,
    torch_product,
    weights,
    weights_of,
)
from torch import Tensor

from adept_fast import ops

NAN, INFINITY = float("nan"), float("inf")
OPERATORS = ("layernorm_qkv", "linear_residual", "lm_head")

# tokens, inputs, rows: every block of tokens, inputs of a part of a chunk, of several for some warps and of
# none for others, tails of 16 lanes, padding to 64, whole and part tiles of 16 rows, work for several tasks
SHAPES = [
    (1, 64, 1),
    (1, 64, 192),
    (2, 80, 33),
    (3, 136, 31),
    (5, 192, 15),
    (6, 1000, 47),
    (7, 64, 300),
    (9, 72, 100),
    (13, 80, 530),
    (16, 96, 17),
    (1, 4160, 81),
    (4, 8, 5),
    (2, 4160, 33),
    (1, 1, 1),
    (3, 65, 16),
    (17, 1000, 40),
    (64, 192, 65),
]
NARROW = SHAPES[2:8:2]  # whose inputs come in bfloat16 too
SHARED = [(1, 4160, 81), (7, 584, 200), (12, 72, 2100)]  # of which several threads or blocks have a part
if THIN:
    SHAPES, NARROW = [(1, 72, 33), (3, 136, 31), (7, 1000, 47), (9, 72, 150), (17, 33, 18)], []
    SHARED = [(8, 584, 200), (16, 72, 600)]  # whole tiles of tokens, which reach the ends of what they use


def takes(backend: Backend, tokens: int, inputs: int) -> bool:
    return tokens <= backend.max_tokens and (backend.family == "cpu" or inputs % 8 == 0)


# Each shape has one operator in each format of each backend, and another in the next format and backend.
CASES = [
    parameter(
        one, fmt, operator, shape, dtype, name="-".join([fmt, operator, "x".join(map(str, shape)), dtype])
    )
    for number, one in enumerate(BACKENDS)
    for first, fmt in enumerate(one.formats, number)
    for dtype, shapes in (("float32", SHAPES), ("bfloat16", NARROW if one.kind == "cpu" else []))
    for at, shape in enumerate([shape for shape in shapes if takes(one, *shape[:2])], first)
    for operator in [OPERATORS[at % len(OPERATORS)]]
]


def inputs(tokens: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(tokens, columns) * 3 + 1).to(dtype)


@functools.lru_cache(maxsize=1024)
def case(
    w: Weights, operator: str, tokens: int, dtype: str, product_dtype: torch.dtype
) -> tuple[dict[str, Any], Expected]:
    """Arguments but for the weights, and what is expected; the same for all instruction sets."""
    rows, columns = w.exact.shape
    x, (gamma, beta), b = inputs(tokens, columns, FLOATS[dtype]), norm(columns), torch.randn(rows)
    arguments: dict[str, Any] = {"x": x}
    normed64, normed32, added = x.double(), x.float(), torch.zeros(rows)
    if operator != "linear_residual":
        arguments |= {"gamma": gamma, "beta": beta, "eps": EPS}
        normed64, normed32 = layernorm64(x, gamma, beta), layernorm32(x, gamma, beta)
    if operator == "lm_head":
        arguments["rows"] = rows
    else:
        arguments["b"] = added = b
    size = added.abs()
    if operator == "linear_residual":
        arguments["residual"] = torch.randn(tokens, rows).to(FLOATS[dtype])
        size = size + arguments["residual"].float().abs()
        added = added + arguments["residual"].float()
    out = torch.float32 if operator == "lm_head" else FLOATS[dtype]
    exact = normed64 @ w.exact.T + added.double()
    torchs = (torch_product(normed32, w.exact, product_dtype, w.family) + added).to(out)
    bound = product_bound(
        normed64, w.exact, product_dtype, w.in_fixed_point, w.scales_weights
    ) + 8 * EPS32 * (size + exact.abs())
    is_narrow = out != torch.float32 or w.values.dtype == product_dtype  # a result is rounded to 16 bits
    bound += (
        torch.finfo(product_dtype if out == torch.float32 else out).eps * (exact.abs() + size) * is_narrow
    )
    size = product_size(normed64, w.exact) + size
    return arguments, Expected(exact, torchs, size, bound, product_dtype, strict=w.family == "cuda")


def run(backend: Backend, operator: str, w: Weights, **arguments: Any) -> Tensor:
    out: Tensor = backend.run(operator, **arguments, w=w.values, scales=w.scales)
    return out


def residual_sum(backend: Backend, x: Tensor, w: Weights, b: Tensor | None = None) -> Tensor:
    """Without a residual, and by default without a bias."""
    rows = len(w.exact)
    b = torch.zeros(rows) if b is None else b
    return run(backend, "linear_residual", w, x=x, b=b, residual=torch.zeros(len(x), rows))


@pytest.mark.parametrize(("backend", "fmt", "operator", "shape", "dtype"), CASES, indirect=["backend"])
def test_products(backend: Backend, fmt: str, operator: str, shape: tuple[int, int, int], dtype: str) -> None:
    tokens, columns, rows = shape
    w = weights(backend, fmt, rows, columns)
    arguments, expected = case(w, operator, tokens, dtype, backend.product_dtype(fmt))
    expected.check(run(backend, operator, w, **arguments), f"{operator} on {backend}, {fmt}, {shape}")


@in_formats(KERNELS)
def test_lm_head_of_a_pruned_vocabulary(backend: Backend, fmt: str) -> None:
    """The first rows of a matrix give the first logits of all, bit by bit, in float32 whatever x is."""
    x, (gamma, beta), w = inputs(2, 96), norm(96), weights(backend, fmt, 100, 96)
    arguments = {"gamma": gamma, "beta": beta, "eps": EPS}
    whole = run(backend, "lm_head", w, x=x, **arguments, rows=100)
    for count in (0, 1, 15, 16, 17, 48, 65, 99):
        pruned = w.first_rows(count)
        assert torch.equal(run(backend, "lm_head", pruned, x=x, **arguments, rows=count), whole[:, :count]), (
            count
        )
        if backend.kind == "cpu":
            narrow = run(backend, "lm_head", pruned, x=x.bfloat16(), **arguments, rows=count)
            assert narrow.dtype == torch.float32


@in_formats(KERNELS)
def test_a_token_has_the_same_bits_alone_as_among_others(backend: Backend, fmt: str) -> None:
    """What follows must not depend on how tokens are cut into blocks."""
    tokens, w = min(19, backend.max_tokens), weights(backend, fmt, 100, 584)
    x, (gamma, beta), b = inputs(tokens, 584), norm(584), torch.randn(100)
    arguments = {"gamma": gamma, "beta": beta, "eps": EPS, "b": b}
    together = run(backend, "layernorm_qkv", w, x=x, **arguments)
    for first, count in ((0, 1), (3, 2), (5, 7), (2, 11), (tokens - 1, 1)):
        part = slice(first, first + count)
        some = run(backend, "layernorm_qkv", w, x=x[part], **arguments)
        assert torch.equal(some, together[part])


@in_formats(KERNELS)
@pytest.mark.parametrize(("tokens", "columns", "rows"), SHARED)
def test_the_same_bits_however_work_is_shared_out(
    backend: Backend, fmt: str, tokens: int, columns: int, rows: int
) -> None:
    x, w, b = inputs(tokens, columns), weights(backend, fmt, rows, columns), torch.randn(rows)
    arguments = dict(zip(("gamma", "beta"), norm(columns), strict=True)) | {"eps": EPS, "b": b}
    expected = run(backend, "layernorm_qkv", w, x=x, **arguments)
    for schedule in [*backend.schedules(), *backend.sizes()]:
        with schedule:
            assert torch.equal(run(backend, "layernorm_qkv", w, x=x, **arguments), expected)


@in_formats(KERNELS)
def test_outliers_zeros_and_scales(backend: Backend, fmt: str) -> None:
    """One large input among small ones, tokens of zeros, numbers near the ends of float32, rows of zeros."""
    columns, rows, zeros = 192, 33, [0, 7, 32]
    values = torch.randn(rows, columns) / columns**0.5
    values[zeros] = 0
    w, b = weights_of(backend, fmt, values), torch.randn(rows)
    x = torch.randn(10, columns)
    x[0, 70], x[1, 191], x[2] = 1e4, -3e6, 0
    x[3] *= 1e30
    x[4] *= 1e-30
    x[5], x[5, 3] = 0, 1.0
    x[6] = 2.5  # every input the largest
    x[7] *= 1e-8
    x[8] *= 1e5
    ours, shifted = residual_sum(backend, x, w), residual_sum(backend, x, w, b)
    bound = product_bound(x, w.exact, backend.product_dtype(fmt), w.in_fixed_point, w.scales_weights)
    assert_within(ours, x.double() @ w.exact.T, bound, f"linear_residual on {backend}, {fmt}")
    assert not ours[:, zeros].any()
    assert not ours[2].any()
    assert torch.equal(shifted[2], b)


@in_formats(KERNELS)
def test_inputs_far_from_0(backend: Backend, fmt: str) -> None:
    """Their squares, less that of their mean, would be nothing but rounding."""
    x, (gamma, beta) = inputs(3, 72) + 4096, norm(72)
    w, b = weights(backend, fmt, 33, 72), torch.randn(33)
    normed = layernorm64(x, gamma, beta)
    bound = 2 * product_bound(normed, w.exact, backend.product_dtype(fmt), w.in_fixed_point, w.scales_weights)
    # The mean is off by a rounding of itself, and so is each input less the mean.
    bound += 4096 * 4 * EPS32 / 3 * (gamma.double().abs() @ w.exact.abs().T)
    ours = run(backend, "layernorm_qkv", w, x=x, gamma=gamma, beta=beta, eps=EPS, b=b)
    assert_within(ours, normed @ w.exact.T + b, bound, f"layernorm_qkv on {backend}, {fmt}")


@in_formats(KERNELS)
@pytest.mark.parametrize("bad", [NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize("tokens", [2] if THIN else [1, 2, 7])
def test_what_is_not_finite_stays_with_its_token(backend: Backend, fmt: str, bad: float, tokens: int) -> None:
    columns, rows = 80, 33
    x, (gamma, beta), b = inputs(tokens, columns), norm(columns), torch.randn(rows)
    w, residual = weights(backend, fmt, rows, columns), torch.randn(tokens, rows)
    poisoned = x.clone()
    poisoned[-1, 79] = bad
    normed = {"gamma": gamma, "beta": beta, "eps": EPS}
    calls: dict[str, dict[str, Any]] = {
        "layernorm_qkv": {**normed, "b": b},
        "lm_head": {**normed, "rows": rows},
        "linear_residual": {"b": b, "residual": residual},
    }
    for operator, arguments in calls.items():
        clean, found = (run(backend, operator, w, x=each, **arguments) for each in (x, poisoned))
        assert torch.equal(clean[:-1], found[:-1]), operator
        assert not found[-1].isfinite().any(), operator


@in_formats(CPU)
def test_padding_is_worth_nothing(backend: Backend, fmt: str) -> None:
    """Inputs past the last column count as 0, whatever a workspace held before."""
    w, x = weights(backend, fmt, 20, 70), inputs(3, 70)
    first = residual_sum(backend, x, w)
    for filler in (NAN, 1e30):
        residual_sum(backend, torch.full((3, 128), filler), weights(backend, fmt, 20, 128))
        assert torch.equal(residual_sum(backend, x, w), first)


@in_formats(CUDA, ("float16", "int4"))
def test_more_tokens_than_shared_memory_has_room_for(backend: Backend, fmt: str) -> None:
    w = weights(backend, fmt, 17, 8192)
    arguments, expected = case(w, "linear_residual", 16, "float32", backend.product_dtype(fmt))
    expected.check(run(backend, "linear_residual", w, **arguments), f"linear_residual on {backend}, {fmt}")


@in_formats(CPU, ("int8", "int4"))
def test_sums_hold_the_largest_inputs_there_may_be(backend: Backend, fmt: str) -> None:
    """65536 inputs at the ends of both bytes and of the weights' range: nothing overflows or saturates."""
    columns = 65536
    signs = torch.ones(columns)
    signs[columns // 2 :] = -1
    w = weights_of(backend, fmt, torch.stack((torch.ones(columns), -torch.ones(columns), signs)))
    largest = 127 * 256
    low_end = torch.full((columns,), 126 * 256 - 128.0)  # high 126, low -128
    low_end[0] = largest
    x = torch.stack((torch.full((columns,), float(largest)), signs * largest, low_end, -low_end))
    rounding = 2000 * EPS32 if fmt == "int4" else 4 * EPS32  # one for each group
    bound = rounding * (x.double().abs() @ w.exact.abs().T)
    assert_within(residual_sum(backend, x, w), x.double() @ w.exact.T, bound, f"linear_residual on {backend}")


@pytest.mark.parametrize("fmt", ["int8", "int4"])
def test_instruction_sets_agree_bit_for_bit(fmt: str) -> None:
    """Integer sums have no order. Without a fused multiply-add, 4 bits' sums of groups round once more."""
    for tokens, columns, rows in SHAPES:
        found = {}
        x = inputs(tokens, columns)
        for backend in CPU:
            with backend.running():
                found[backend.name] = residual_sum(backend, x, weights(backend, fmt, rows, columns))
        for name, result in found.items():
            off = 2e-5 if name == "cpu-portable" and fmt == "int4" else 0.0
            best = found[CPU[0].name]
            torch.testing.assert_close(result, best, atol=off, rtol=0, msg=f"{name}, {tokens, columns, rows}")


@in_formats(CPU[:1])
def test_inputs_need_not_be_contiguous(backend: Backend, fmt: str) -> None:
    call = backend.operators
    w, b, (gamma, beta) = weights(backend, fmt, 24, 24), torch.randn(24), norm(24)
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


@in_formats(CPU[:1])
@pytest.mark.parametrize("tokens", [16, 17, 40])
def test_the_operators_python_calls(backend: Backend, fmt: str, tokens: int) -> None:
    """With more than 16 tokens torch's GEMM may take over, rounding inputs to the weights' dtype."""
    x, (gamma, beta), b = inputs(tokens, 80), norm(80), torch.randn(50)
    w, residual = weights(backend, fmt, 50, 80), torch.randn(tokens, 50)
    assert w.matrix is not None
    normed, normed32 = layernorm64(x, gamma, beta), layernorm32(x, gamma, beta)

    def theirs(inputs: Tensor) -> Tensor:
        rounded = inputs.bfloat16().float() if fmt not in ("float32", "float16") else inputs
        return F.linear(rounded, w.exact.float())

    size, size_of_x = product_size(normed, w.exact), product_size(x, w.exact)
    added, added_size = b + residual, b.abs() + residual.abs()
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
            x.double() @ w.exact.T + added,
            theirs(x) + added,
            size_of_x + added_size,
        ),
    ]
    rounded_to = torch.bfloat16 if fmt == "bfloat16" else backend.product_dtype(fmt)
    for ours, exact, by_torch, size_of_case in cases:
        assert ours.dtype == torch.float32
        rounded = by_torch.to(torch.bfloat16).float() if fmt == "bfloat16" else by_torch
        assert_close(ours, exact, rounded, size_of_case, fmt, rounded_to)


@on(KERNELS)
def test_no_tokens(backend: Backend) -> None:
    for fmt in backend.formats:
        w, (gamma, beta) = weights(backend, fmt, 33, 64), norm(64)
        x, normed = torch.zeros(0, 64), {"gamma": gamma, "beta": beta, "eps": EPS}
        assert run(backend, "layernorm_qkv", w, x=x, **normed, b=torch.randn(33)).shape == (0, 33)
        assert run(backend, "lm_head", w, x=x, **normed, rows=33).shape == (0, 33)
        assert residual_sum(backend, x, w).shape == (0, 33)

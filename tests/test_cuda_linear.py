"""layernorm_qkv, linear_residual and lm_head in CUDA against float64, in every format."""

from __future__ import annotations

import pytest
import torch
from cuda_place import THIN, Place, every_place
from cuda_place import inputs_arrive as inputs_arrive
from cuda_weights import (
    EPS,
    EPS32,
    FORMATS,
    Weights,
    another_order,
    assert_close,
    layernorm64,
    multiprocessors,
    norm,
    rounding,
    surrounded,
    torch_product,
    weights,
)
from torch import Tensor

every_format = pytest.mark.parametrize("fmt", FORMATS)

# tokens, inputs, rows: inputs of a part of a chunk, of several for some warps and none for others, rows of
# part tiles, and more tiles than blocks
SHAPES = [
    (1, 64, 1),
    (1, 64, 192),
    (2, 72, 33),
    (3, 136, 31),
    (5, 8, 17),
    (8, 1000, 100),
    (9, 72, 100),
    (16, 64, 31),
    (1, 1000, 300),
    (2, 4160, 33),
    (13, 4160, 17),
    (16, 136, 530),
]
if THIN:
    SHAPES = [(1, 72, 33), (3, 136, 31), (9, 72, 150)]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def inputs(tokens: int, columns: int) -> Tensor:
    return torch.randn(tokens, columns) * 3 + 1


def qkv(place: Place, x: Tensor, gamma: Tensor, beta: Tensor, w: Weights, b: Tensor) -> Tensor:
    values, scales = w.parts(place)
    x, gamma, beta, b = (surrounded(one.to(place.device)) for one in (x, gamma, beta, b))
    out: Tensor = place.operators.layernorm_qkv(x, gamma, beta, EPS, values, scales, b)
    return out


def residual_sum(place: Place, x: Tensor, w: Weights, b: Tensor, residual: Tensor) -> Tensor:
    values, scales = w.parts(place)
    x, b, residual = (surrounded(one.to(place.device)) for one in (x, b, residual))
    out: Tensor = place.operators.linear_residual(x, values, scales, b, residual)
    return out


@every_place
@every_format
@pytest.mark.parametrize(("tokens", "columns", "rows"), SHAPES)
def test_layernorm_qkv(place: Place, fmt: str, tokens: int, columns: int, rows: int) -> None:
    x, (gamma, beta) = inputs(tokens, columns), norm(columns)
    w, b = weights(fmt, rows, columns), torch.randn(rows)
    normalised = layernorm64(x, gamma, beta)
    exact = normalised @ w.exact.T + b
    bound = rounding(normalised, w.exact, w.dtype) + 4 * EPS32 * exact.abs()
    ours = qkv(place, x, gamma, beta, w, b)
    assert_close(ours, exact, bound, torch_product(normalised.float(), w) + b)


@every_place
@every_format
@pytest.mark.parametrize(("tokens", "columns", "rows"), SHAPES)
def test_linear_residual(place: Place, fmt: str, tokens: int, columns: int, rows: int) -> None:
    x, residual = inputs(tokens, columns), torch.randn(tokens, rows)
    w, b = weights(fmt, rows, columns), torch.randn(rows)
    exact = x.double() @ w.exact.T + b + residual
    bound = rounding(x.double(), w.exact, w.dtype) + 4 * EPS32 * (1 + exact.abs())
    assert_close(residual_sum(place, x, w, b, residual), exact, bound, torch_product(x, w) + b + residual)


@every_place
@pytest.mark.parametrize("tokens", [1, 3])
def test_inputs_far_from_0(place: Place, tokens: int) -> None:
    """Their squares, less that of their mean, would be nothing but rounding."""
    x, (gamma, beta) = inputs(tokens, 72) + 4096, norm(72)
    w, b = weights("float16", 33, 72), torch.randn(33)
    normalised = layernorm64(x, gamma, beta)
    bound = 2 * rounding(normalised, w.exact, w.dtype)
    off = qkv(place, x, gamma, beta, w, b).cpu() - (normalised @ w.exact.T + b)
    assert bool((off.abs() <= bound).all())


@every_place
@every_format
def test_lm_head_of_some_rows(place: Place, fmt: str) -> None:
    x, (gamma, beta), w = inputs(2, 136), norm(136), weights(fmt, 100, 136)
    normalised = layernorm64(x, gamma, beta)
    values, scales = w.parts(place)
    for rows in (0, 1, 65):
        scales_of = scales if scales is None else scales[:rows]
        on_place = [one.to(place.device) for one in (x, gamma, beta)]
        ours = place.operators.lm_head(*on_place, EPS, values[:rows], scales_of, rows)
        first = Weights(w.values[:rows], scales_of, w.exact[:rows])
        bound = rounding(normalised, first.exact, w.dtype)
        exact = normalised @ first.exact.T
        assert_close(ours, exact, bound, torch_product(normalised.float(), first))


@every_place
@every_format
def test_the_same_bits_in_any_order_of_threads(place: Place, fmt: str) -> None:
    for tokens in (1, 7, 12):
        x, (gamma, beta) = inputs(tokens, 584), norm(584)
        w, b = weights(fmt, 200, 584), torch.randn(200)
        expected = qkv(place, x, gamma, beta, w, b)
        for name in ("rev", "1"):
            with another_order(place, name):
                assert torch.equal(qkv(place, x, gamma, beta, w, b), expected)


@every_place
@every_format
def test_a_token_has_the_same_bits_alone_as_among_others(place: Place, fmt: str) -> None:
    x, (gamma, beta) = inputs(16, 584), norm(584)
    w, b = weights(fmt, 100, 584), torch.randn(100)
    together = qkv(place, x, gamma, beta, w, b)
    for first, count in ((0, 1), (3, 2), (5, 7), (2, 11)):
        some = qkv(place, x[first : first + count], gamma, beta, w, b)
        assert torch.equal(some, together[first : first + count])


@every_place
@every_format
@pytest.mark.parametrize("count", [1, 3, 132])
def test_devices_of_any_size(place: Place, fmt: str, count: int) -> None:
    x, (gamma, beta) = inputs(10, 72), norm(72)
    w, b = weights(fmt, 333, 72), torch.randn(333)
    expected = qkv(place, x, gamma, beta, w, b)
    with multiprocessors(place, count):
        assert torch.equal(qkv(place, x, gamma, beta, w, b), expected)


@every_place
@pytest.mark.parametrize("fmt", ["float16", "int4"])
def test_more_tokens_than_shared_memory_has_room_for(place: Place, fmt: str) -> None:
    tokens, columns, rows = 16, 8192, 17
    x, w = inputs(tokens, columns), weights(fmt, rows, columns)
    b, residual = torch.randn(rows), torch.randn(tokens, rows)
    exact = x.double() @ w.exact.T + b + residual
    bound = rounding(x.double(), w.exact, w.dtype) + 4 * EPS32 * (1 + exact.abs())
    assert_close(residual_sum(place, x, w, b, residual), exact, bound, torch_product(x, w) + b + residual)


@every_place
@every_format
@pytest.mark.parametrize("magnitude", [1e-30, 1e-8, 1e5, 1e30])
def test_inputs_of_any_magnitude(place: Place, fmt: str, magnitude: float) -> None:
    """Those of one token, beside one of ordinary size."""
    x = inputs(2, 136) * torch.tensor([[magnitude], [1.0]])
    w, zeros = weights(fmt, 33, 136), torch.zeros(2, 33)
    ours = residual_sum(place, x, w, zeros[0], zeros).double().cpu()
    exact = x.double() @ w.exact.T
    off = (ours - exact).abs() / rounding(x.double(), w.exact, w.dtype)
    assert bool((off <= 1).all())


@every_place
@every_format
@pytest.mark.parametrize("tokens", [2, 5])
def test_a_token_of_zeros_and_one_that_is_no_number(place: Place, fmt: str, tokens: int) -> None:
    x = inputs(tokens, 72)
    x[0] = 0
    x[1, 33] = float("nan")
    w, b, zeros = weights(fmt, 33, 72), torch.randn(33), torch.zeros(tokens, 33)
    ours = residual_sum(place, x, w, b, zeros).cpu()
    assert torch.equal(ours[0], b)
    assert bool(ours[1].isnan().all())
    assert bool(ours[2:].isfinite().all())


@every_place
def test_no_tokens(place: Place) -> None:
    x, (gamma, beta), w = inputs(0, 64), norm(64), weights("float16", 33, 64)
    assert qkv(place, x, gamma, beta, w, torch.randn(33)).shape == (0, 33)


@every_place
def test_weights_that_are_not_aligned_are_refused(place: Place) -> None:
    x, (gamma, beta) = inputs(1, 64), norm(64)
    memory = torch.zeros(33 * 64 + 1, dtype=torch.float16, device=place.device)
    arguments = [one.to(place.device) for one in (x, gamma, beta)]
    with pytest.raises(RuntimeError, match="misaligned"):
        place.operators.layernorm_qkv(
            *arguments, EPS, memory[1:].view(33, 64), None, torch.randn(33, device=place.device)
        )

"""prepare_rows, activate_rows and finish_rows: the bits of their definitions, but for a LayerNorm's."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from backends import CUDA, EPS, FLOATS, THIN, Backend, on, same_bits
from matrices import layernorm64, norm
from torch import Tensor

from adept_fast.ops import rows as definitions

INFINITY, NAN = float("inf"), float("nan")
# Parts of what a block has, and each number of quads of a thread.
COLUMNS = [8, 72, 2056, 4104, 8200, 16392, 32768]
OUTPUTS = [1, 7, 8, 72, 1023, 4100, 4096, 5000]
if THIN:
    COLUMNS, OUTPUTS = [8, 2056, 8200], [7, 72, 4100]
HALVES = {name: FLOATS[name] for name in ("float16", "bfloat16")}

in_every_dtype = pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS)
in_halves = pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)

Prepared = tuple[Tensor, Tensor]


def prepare(
    backend: Backend,
    x: Tensor,
    dtype: torch.dtype,
    normed_by: tuple[Tensor, Tensor] | None = None,
    raised: int = 0,
    padding: int = 0,
) -> Prepared:
    gamma, beta = normed_by or (None, None)
    at = {"eps": EPS, "raised": raised, "rows": len(x) + padding, "dtype": dtype}
    found: Prepared = backend.run("prepare_rows", x=x, gamma=gamma, beta=beta, **at)
    return found


def defined(x: Tensor, dtype: torch.dtype, raised: int = 0, padding: int = 0) -> Prepared:
    return definitions.prepare_rows(x, None, None, EPS, raised, len(x) + padding, dtype)


def assert_same(found: Prepared, expected: Prepared, what: object) -> None:
    assert same_bits(found[0], expected[0]), what
    assert same_bits(found[1], expected[1]), what


@in_every_dtype
@on(CUDA)
def test_inputs_are_rounded_beside_a_power_of_two(backend: Backend, dtype: torch.dtype) -> None:
    sizes = torch.tensor([1e-38, 1e-30, 1e-6, 0.0, 1.0, 300.0, 1e9, 3e36])
    for columns, raised in zip(COLUMNS, itertools.cycle((0, 9, 3)), strict=False):
        x = torch.randn(len(sizes), columns) * sizes[:, None]
        found = prepare(backend, x, dtype, raised=raised, padding=3)
        assert_same(found, defined(x, dtype, raised, 3), columns)
        assert not found[0][len(x) :].any()
        if dtype != torch.float32:
            assert (found[0][:7].abs() <= 2.0**-raised).all()  # the last token's power is the largest


@in_every_dtype
@on(CUDA)
def test_a_layer_norm_before_it(backend: Backend, dtype: torch.dtype) -> None:
    for columns in COLUMNS:
        x, (gamma, beta) = torch.randn(3, columns) * torch.tensor([[1e-3], [4.0], [1e5]]) + 2, norm(columns)
        gamma *= 70000  # past the range of float16
        values, powers = prepare(backend, x, dtype, (gamma, beta), padding=1)
        exact = layernorm64(x, gamma, beta)
        off = (values[:3].double() * powers[:, None].double() - exact).abs()
        # Of rounding to the dtype, near 0 to its subnormal numbers, and of x - mean in float32.
        largest = exact.abs().amax(-1, keepdim=True)
        spread = x.double().std(-1, keepdim=True, correction=0)
        of_norm = 4e-7 * (1 + x.double().abs().amax(-1, keepdim=True) / spread)
        bound = exact.abs() * torch.finfo(dtype).eps / 2 + largest * (2.0**-23 + of_norm)
        assert (off <= bound).all(), columns
        assert not values[3:].any()
        if dtype != torch.float32:
            assert ((values.abs().amax(-1)[:3] > 0.49) & (values.abs().amax(-1)[:3] <= 1)).all()


@in_every_dtype
@pytest.mark.parametrize("normalizes", [False, True])
@on(CUDA)
def test_a_token_has_the_same_bits_in_any_company(
    backend: Backend, dtype: torch.dtype, normalizes: bool
) -> None:
    x, normed_by = torch.randn(5, 4104) * 9, norm(4104) if normalizes else None
    whole = prepare(backend, x, dtype, normed_by, padding=2)
    for token in range(5):
        alone = prepare(backend, x[token : token + 1], dtype, normed_by)
        assert_same(alone, (whole[0][token : token + 1], whole[1][token : token + 1]), token)
    for schedule in backend.schedules():
        with schedule:
            assert_same(prepare(backend, x, dtype, normed_by, padding=2), whole, "in another order")


@in_halves
@on(CUDA)
def test_what_is_not_finite_stays_so(backend: Backend, dtype: torch.dtype) -> None:
    x = torch.randn(3, 72)
    x[0, 5], x[1, 71], x[2, 0] = NAN, INFINITY, -INFINITY
    values, powers = prepare(backend, x, dtype)
    assert values[0, 5].isnan()
    assert values[0].isnan().sum() == 1
    assert (values[1, 71], values[2, 0]) == (INFINITY, -INFINITY)
    assert torch.isfinite(powers).all()


def random_product(dtype: torch.dtype, tokens: int, columns: int, parts: int = 0) -> dict[str, Tensor]:
    """Of more rows than tokens, which hold NaNs."""
    shape = (*([parts] if parts else []), tokens + 2, columns)
    product = (torch.randn(shape) * 3).to(dtype)
    product[..., tokens:, :] = NAN
    return {"product": product, "powers": 2.0 ** torch.randint(-20, 20, (tokens,))}


@in_halves
@pytest.mark.parametrize("scaled", [False, True])
@on(CUDA)
def test_activations_are_prepared_in_one_call(backend: Backend, dtype: torch.dtype, scaled: bool) -> None:
    for columns, raised in zip(COLUMNS, itertools.cycle((0, 9)), strict=False):
        given: dict[str, Any] = random_product(dtype, 3, columns)
        given |= {"scales": torch.rand(columns) if scaled else None, "bias": torch.randn(columns)}
        given |= {"raised": raised, "rows": 4}
        found = backend.run("activate_rows", **given)
        assert_same(found, definitions.activate_rows(**given), columns)
        assert 0.2 < (found[0][:3] == 0).float().mean() < 0.8
        assert not found[0][3:].any()
    given["product"][1, 3] = NAN
    assert backend.run("activate_rows", **given)[0][1].isnan().any()


@in_every_dtype
@pytest.mark.parametrize("parts", [0, 1, 3])
@on(CUDA)
def test_products_are_finished(backend: Backend, dtype: torch.dtype, parts: int) -> None:
    for at, columns in enumerate(OUTPUTS):
        given: dict[str, Any] = random_product(dtype, 5, columns, parts)
        given |= {"scales": torch.rand(columns), "bias": torch.randn(columns)}
        given |= {"relu_squared": False, "residual": torch.randn(5, columns)}
        for name in ("scales", "bias", "residual")[: at % 4]:
            given[name] = None
        for relu_squared in (False, True):
            given["relu_squared"] = relu_squared
            found = backend.run("finish_rows", **given)
            assert same_bits(found, definitions.finish_rows(**given)), columns
            for schedule in backend.schedules() if columns == 4100 else []:
                with schedule:
                    assert same_bits(backend.run("finish_rows", **given), found)


@in_halves
@on(CUDA)
def test_operands_that_begin_anywhere(backend: Backend, dtype: torch.dtype) -> None:
    given: dict[str, Any] = random_product(dtype, 3, 64) | {"scales": torch.rand(64), "bias": torch.rand(64)}
    given |= {"relu_squared": False, "residual": torch.randn(3, 64)}
    expected = definitions.finish_rows(**given)
    for name in ("product", "scales", "bias", "residual"):
        memory = torch.zeros(given[name].numel() + 1, dtype=given[name].dtype, device=backend.device)
        moved = {
            key: value.to(backend.device) if isinstance(value, Tensor) else value
            for key, value in given.items()
        }
        moved[name] = memory[1:].view(given[name].shape).copy_(moved[name])
        assert same_bits(backend.operators.finish_rows(**moved).cpu(), expected), name


@on(CUDA)
def test_no_tokens(backend: Backend) -> None:
    values, powers = prepare(backend, torch.zeros(0, 8), torch.float16, padding=2)
    assert not values.any()
    assert (values.shape, powers.shape) == ((2, 8), (0,))
    given = {"product": torch.zeros(2, 8).half(), "powers": powers, "scales": None, "bias": None}
    assert backend.run("finish_rows", **given, relu_squared=False, residual=None).shape == (0, 8)


X = {
    "x": torch.zeros(2, 48),
    "gamma": None,
    "beta": None,
    "eps": EPS,
    "raised": 0,
    "rows": 2,
    "dtype": torch.float16,
}
PRODUCT = {
    "product": torch.zeros(4, 48).half(),
    "powers": torch.ones(2),
    "scales": None,
    "bias": torch.zeros(48),
}
FINISH = PRODUCT | {"relu_squared": False, "residual": None}


@pytest.mark.parametrize(
    ("operator", "arguments", "says"),
    [
        (
            "prepare_rows",
            X | {"x": torch.zeros(2, 44)},
            "x has 44 columns; expected a multiple of 8 up to 32768",
        ),
        ("prepare_rows", X | {"x": torch.zeros(2, 32776)}, "x has 32776 columns"),
        ("prepare_rows", X | {"x": torch.zeros(48)}, "x has shape [48]; expected [tokens, columns]"),
        ("prepare_rows", X | {"gamma": torch.ones(48)}, "only one of gamma and beta is given"),
        ("prepare_rows", X | {"rows": 1}, "rows is 1; expected 2 to 4098"),
        ("prepare_rows", X | {"rows": 2**40}, "rows is 1099511627776; expected 2 to 4098"),
        ("prepare_rows", X | {"raised": -1}, "raised is -1; expected 0 to 64"),
        ("prepare_rows", X | {"dtype": torch.int8}, "dtype is Char; expected Float, Half or BFloat16"),
        ("activate_rows", PRODUCT | {"raised": 0, "rows": 1}, "rows is 1; expected 2 to 4098"),
        (
            "activate_rows",
            PRODUCT | {"product": torch.zeros(2, 4, 48).half(), "raised": 0, "rows": 2},
            "product has 2 parts; expected one",
        ),
        (
            "activate_rows",
            PRODUCT | {"product": torch.zeros(4, 48), "raised": 0, "rows": 2},
            "activate_rows: ",
        ),
        ("finish_rows", FINISH | {"powers": torch.ones(5)}, "product has shape [4, 48] and powers 5 tokens"),
        (
            "finish_rows",
            FINISH | {"product": torch.zeros(4, 48).int()},
            "product has shape [4, 48] and dtype Int",
        ),
        ("finish_rows", FINISH | {"product": torch.zeros(0, 4, 48)}, "product has shape [0, 4, 48]"),
        ("finish_rows", FINISH | {"bias": torch.zeros(47)}, "bias has shape [47]; expected [48]"),
        (
            "finish_rows",
            FINISH | {"residual": torch.zeros(4, 48)},
            "residual has shape [4, 48]; expected [2, 48]",
        ),
    ],
)
@on(CUDA)
def test_what_kernels_do_not_take(
    backend: Backend, operator: str, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(RuntimeError) as caught:
        backend.run(operator, **arguments)
    assert says in str(caught.value)

"""mlp in C++ against float64: units that are 0, rows that are not read, sizes that fit nothing."""

from __future__ import annotations

from dataclasses import dataclass

import native
import pytest
import torch
import torch.nn.functional as F
from closeness import assert_close, product_size
from native import EPS, call
from native import settled as settled
from torch import Tensor

from adept_fast import ops
from adept_fast.ops import cpu
from adept_fast.quantization.matrix import QuantizedMatrix

NAN = float("nan")

# tokens, hidden, units: strips of 1024 columns, padding to 128, parts of the list of units, blocks of tokens
SHAPES = [
    (1, 64, 256),
    (2, 80, 321),
    (3, 96, 1),
    (5, 200, 77),
    (16, 64, 130),
    (17, 128, 63),
    (1, 1000, 515),
    (4, 1024, 40),
    (3, 1100, 203),
    (1, 2100, 66),
    (2, 4160, 35),
    (33, 48, 9),
]
if native.THIN:
    SHAPES = [(2, 80, 321), (5, 200, 7), (3, 1100, 40)]

# From all units to none.
SHARES = [0.0, 0.3, 0.9, 0.99, 1.0]


@dataclass
class Mlp:
    """An MLP's operands, and what they give in float64."""

    fmt: str
    x: Tensor
    gamma: Tensor
    beta: Tensor
    up: native.Weights
    b_up: Tensor
    down: native.Weights
    b_down: Tensor

    @property
    def units64(self) -> Tensor:
        return self.pre_activations64.relu().square()

    @property
    def pre_activations64(self) -> Tensor:
        return native.layernorm64(self.x, self.gamma, self.beta) @ self.up.exact.T + self.b_up.double()

    @property
    def exact(self) -> Tensor:
        return self.x.double() + self.units64 @ self.down.exact + self.b_down.double()

    @property
    def size(self) -> Tensor:
        """Of what is added up; a unit is off by its rounding, and by 2 roots of it times that of its sum."""
        normed = native.layernorm64(self.x, self.gamma, self.beta)
        sums = product_size(normed, self.up.exact) + self.b_up.abs()
        units = self.units64 + 2 * self.units64.sqrt() * sums
        return product_size(units, self.down.exact.T) + self.x.double().abs() + self.b_down.abs()

    def by_torch(self) -> Tensor:
        """In float32; beside packed weights the inputs of each product are in bfloat16."""
        normed = native.as_inputs(native.layernorm32(self.x, self.gamma, self.beta), self.fmt)
        units = F.linear(normed, self.up.exact.float(), self.b_up).relu().square()
        result = self.x.float() + native.as_inputs(units, self.fmt) @ self.down.exact.float() + self.b_down
        return result.to(self.x.dtype)

    def __call__(
        self, counts: Tensor | None = None, down: tuple[Tensor, Tensor | None] | None = None
    ) -> Tensor:
        return call.mlp(
            self.x,
            self.gamma,
            self.beta,
            EPS,
            *self.up.parts,
            self.b_up,
            *(down or self.down.parts),
            self.b_down,
            counts,
        )

    def bound(self) -> Tensor:
        """What fixed point may cost: of the inputs, carried through relu², and of the units."""
        normed = native.layernorm64(self.x, self.gamma, self.beta)
        off = native.fixed_point_error(normed, self.up.exact) + 8 * native.EPS32 * self.b_up.abs()
        units = (self.pre_activations64.abs() + off).square()
        carried = (2 * self.pre_activations64.abs() * off + off.square()) * (self.pre_activations64 > -off)
        units = units * (self.pre_activations64 > -off)
        total = carried @ self.down.exact.abs() + units_off(units, self.down)
        sizes = self.x.double().abs() + units @ self.down.exact.abs() + self.b_down.double().abs()
        return total + (16 * native.EPS32 + torch.finfo(self.x.dtype).eps) * sizes


def units_off(units: Tensor, down: native.Weights) -> Tensor:
    """How far rounded units may put a product off: half a step of each, the step that of the largest."""
    packed = down.matrix
    assert isinstance(packed, QuantizedMatrix)
    columns = packed.shape[1]
    if packed.bits == 8:
        return units.amax(1, keepdim=True) / 65535 / 2 * ((units > 0).double() @ down.exact.abs())
    # A step for each group of columns, of the products of units and scales; Q - 8 is at most 8.
    products = units[:, :, None] * packed.scales[:, 0].double().abs()  # [tokens, units, groups]
    steps = (products.amax(1) * native.STEP).repeat_interleave(32, 1)[:, :columns]
    return steps / 2 * 8 * (units > 0).sum(1, keepdim=True)


def operands(
    fmt: str, tokens: int, hidden: int, units: int, dead: float = 0.5, dtype: torch.dtype = torch.float32
) -> Mlp:
    """About the share ``dead`` of the units is 0 for all tokens, and half of the rest for each."""
    b_up = torch.randn(units) * 0.3
    b_up[torch.rand(units) < dead] = -100.0
    return Mlp(
        fmt,
        (torch.randn(tokens, hidden) * 2 + 0.5).to(dtype),
        *native.norm(hidden),
        native.weights(fmt, units, hidden),
        b_up,
        native.weights(fmt, units, hidden, "units", fan_in=units),
        torch.randn(hidden),
    )


def assert_right(ours: Tensor, mlp: Mlp, what: object) -> None:
    assert ours.dtype == mlp.x.dtype
    assert_close(ours, mlp.exact, mlp.by_torch(), mlp.size, what, native.input_dtype(mlp.fmt))
    if mlp.fmt in native.PACKED:
        native.assert_within(ours, mlp.exact, mlp.bound(), what)


@native.every_format
@native.every_set
def test_mlp(isa: str, fmt: str) -> None:
    for shape in SHAPES:
        mlp = operands(fmt, *shape)
        with native.using(isa):
            assert_right(mlp(), mlp, shape)


@native.every_format
@native.every_set
@pytest.mark.parametrize("dead", SHARES)
def test_units_that_are_0(isa: str, fmt: str, dead: float) -> None:
    for tokens in (1, 3, 8):
        mlp = operands(fmt, tokens, 150, 403, dead)
        counts = torch.tensor([10, 1000])
        with native.using(isa):
            assert_right(mlp(counts), mlp, tokens)
        needed = int((mlp.units64 != 0).any(0).sum())
        assert (needed == 0) == (dead == 1)
        assert counts.tolist() == [10 + needed, 1000 + 403]


@native.every_format
@native.every_set
def test_without_a_unit_the_input_and_the_bias_are_left(isa: str, fmt: str) -> None:
    mlp = operands(fmt, 3, 70, 40, dead=1.0)
    with native.using(isa):
        assert torch.equal(mlp(), mlp.x + mlp.b_down)


@native.every_format
@native.every_set
def test_from_bfloat16(isa: str, fmt: str) -> None:
    mlp = operands(fmt, 3, 80, 100, dtype=torch.bfloat16)
    with native.using(isa):
        assert_right(mlp(), mlp, "")


def poisoned(down: native.Weights, rows: Tensor, filler: float) -> tuple[Tensor, Tensor | None]:
    """The parts of a transposed matrix in which these rows must not be read."""
    values, scales = (None if part is None else part.clone() for part in down.parts)
    assert values is not None
    if not values.is_floating_point():
        values[rows] = 255 if values.dtype == torch.uint8 else -128
    else:
        values[rows] = filler
    if scales is not None and scales.ndim == 3:  # of 4 bits, whose scales lie along rows
        scales[rows] = filler
    return values, scales


@native.every_format
@native.every_set
@pytest.mark.parametrize("dead", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_rows_whose_unit_is_0_are_never_read(isa: str, fmt: str, tokens: int, dead: float) -> None:
    mlp = operands(fmt, tokens, 130, 203, dead)
    unneeded = (mlp.units64 == 0).all(0)
    assert unneeded.any()
    with native.using(isa):
        clean = mlp()
        for filler in (NAN, 1e4):
            assert torch.equal(mlp(down=poisoned(mlp.down, unneeded, filler)), clean)


@native.every_format
@native.every_set
def test_tokens_that_need_different_rows(isa: str, fmt: str) -> None:
    """Token t needs rows 3t to 3t + 4 alone; all of them are read, and its own count for it."""
    tokens, hidden, units = 9, 96, 40
    mlp = operands(fmt, tokens, hidden, units, dead=0.0)
    mlp.x = torch.eye(tokens, hidden) * 10
    mlp.gamma, mlp.beta = torch.ones(hidden), torch.zeros(hidden)
    up = torch.zeros(units, hidden)
    for token in range(tokens):
        up[3 * token : 3 * token + 5, token] = 1.0
    mlp.up, mlp.b_up = native.weights_of(fmt, up), torch.full((units,), -1.0)
    needed = mlp.units64 != 0
    assert needed.any(0).sum() == 3 * tokens + 2
    assert (needed.sum(1) == 5).all()
    counts = torch.zeros(2, dtype=torch.int64)
    with native.using(isa):
        together = mlp(counts)
        assert_right(together, mlp, "together")
        assert counts.tolist() == [3 * tokens + 2, units]
        all_of_them = mlp.x
        for token in range(tokens):
            mlp.x = all_of_them[token : token + 1]
            torch.testing.assert_close(mlp(), together[token : token + 1], atol=1e-3, rtol=1e-4)


@native.every_format
@native.every_set
@pytest.mark.parametrize("pre_activation", [300.0, 1000.0, 2e4])
def test_relu_squared_does_not_overflow(isa: str, fmt: str, pre_activation: float) -> None:
    """Of one unit, 256 is the last whose square float16 would hold; others are small beside it."""
    hidden, units = 64, 130
    b_up = torch.full((units,), -1.0)
    b_up[[2, 77, 129]] = torch.tensor([pre_activation, 1.0, 0.5])
    mlp = Mlp(
        fmt,
        torch.randn(2, hidden),
        torch.zeros(hidden),
        torch.ones(hidden),  # every normalised value is 1
        native.weights_of(fmt, torch.zeros(units, hidden)),
        b_up,
        native.weights(fmt, units, hidden, "units"),
        torch.zeros(hidden),
    )
    with native.using(isa):
        ours = mlp()
    assert ours.isfinite().all()
    assert_right(ours, mlp, pre_activation)


@native.every_format
@native.every_set
@pytest.mark.parametrize("bad", [NAN, float("inf")])
@pytest.mark.parametrize("tokens", [1, 2, 6])
def test_what_is_not_finite_stays_with_its_token(isa: str, fmt: str, bad: float, tokens: int) -> None:
    mlp = operands(fmt, tokens, 80, 100)
    with native.using(isa):
        clean = mlp()
        mlp.x = mlp.x.clone()
        mlp.x[-1, 79] = bad
        found = mlp()
    assert torch.equal(found[:-1], clean[:-1]) or close_but_for_order(found[:-1], clean[:-1])
    assert found[-1].isnan().all()


def close_but_for_order(first: Tensor, second: Tensor) -> bool:
    """A NaN needs every row, and with more of them sums are cut into other parts."""
    return torch.allclose(first, second, atol=1e-4, rtol=1e-4)


@native.every_set
def test_65536_units_of_8_bits(isa: str) -> None:
    """The largest units and weights that there may be: no sum overflows."""
    hidden, units = 4, 65536
    down = torch.ones(units, hidden)
    down[:, 1], down[::2, 2] = -1, -1
    mlp = Mlp(
        "int8",
        torch.zeros(2, hidden),
        torch.zeros(hidden),
        torch.zeros(hidden),
        native.weights_of("int8", torch.zeros(units, hidden)),
        torch.ones(units),  # both bytes 255
        native.weights_of("int8", down, "units"),
        torch.zeros(hidden),
    )
    with native.using(isa):
        ours = mlp()
    assert (ours - mlp.exact).abs().max() <= 1e-5 * units


@native.every_format
@native.every_set
def test_threads_change_no_bit(isa: str, fmt: str) -> None:
    """33 tokens and 2500 columns make more tasks of every kind than there are threads."""
    mlp = operands(fmt, 33, 2500, 150)
    with native.using(isa):
        alone = mlp()
        for count in (2, 5):
            with native.threads(count):
                assert torch.equal(mlp(), alone)


@native.every_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fmt", native.PACKED)
def test_dequantize_transposed(isa: str, fmt: str, dtype: torch.dtype) -> None:
    for rows, columns in ((1, 1), (3, 17), (17, 100), (33, 130), (5, 1000), (40, 256)):
        w = native.weights(fmt, rows, columns, "units")
        out = torch.full((rows, columns), NAN, dtype=dtype)
        with native.using(isa):
            call.dequantize_transposed(*w.parts, out)
        assert torch.equal(out, w.exact.float().to(dtype)), (rows, columns)


@native.every_format
@pytest.mark.parametrize("bfloat16_products", [True, False])
@pytest.mark.parametrize("tokens", [16, 17, 48, 49, 70])
def test_many_tokens_go_to_torch(
    fmt: str, tokens: int, bfloat16_products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``ops.mlp`` as prefill calls it, where torch multiplies bfloat16 fast and where it does not."""
    monkeypatch.setattr(cpu, "_HAS_BFLOAT16", bfloat16_products)
    mlp = operands(fmt, tokens, 150, 203)
    ours = ops.mlp(mlp.x, mlp.gamma, mlp.beta, EPS, mlp.up.matrix, mlp.b_up, mlp.down.matrix, mlp.b_down)
    assert ours.dtype == torch.float32
    normed = native.layernorm32(mlp.x, mlp.gamma, mlp.beta)
    narrow = torch.float32 if fmt in ("float32", "float16") else torch.bfloat16
    units = F.linear(normed.to(narrow), mlp.up.exact.to(narrow)).float() + mlp.b_up
    down = units.relu().square().to(narrow) @ mlp.down.exact.to(narrow)
    assert_close(ours, mlp.exact, mlp.x + down.float() + mlp.b_down, mlp.size, "", narrow)


@native.every_format
def test_many_tokens_with_counts_stay_with_the_kernels(fmt: str) -> None:
    mlp = operands(fmt, 60, 96, 100, dead=0.9)
    counts = torch.zeros(2, dtype=torch.int64)
    ours = ops.mlp(
        mlp.x, mlp.gamma, mlp.beta, EPS, mlp.up.matrix, mlp.b_up, mlp.down.matrix, mlp.b_down, counts
    )
    assert_right(ours, mlp, "")
    assert counts.tolist() == [int((mlp.units64 != 0).any(0).sum()), 100]

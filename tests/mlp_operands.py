"""An MLP's operands for tests, and what it gives in float64."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from backends import EPS, Backend
from closeness import product_size
from matrices import (
    EPS32,
    GROUPS,
    STEP,
    Expected,
    Weights,
    layernorm32,
    layernorm64,
    norm,
    product_bound,
    torch_product,
    weights,
)
from torch import Tensor

from adept_fast.quantization.layout_cpu import TiledMatrix


@dataclass(frozen=True, eq=False)
class Mlp:
    """An MLP's operands, and what they give in float64."""

    x: Tensor
    gamma: Tensor
    beta: Tensor
    up: Weights
    b_up: Tensor
    down: Weights
    b_down: Tensor
    dtype: torch.dtype  # of torch's products

    def run(
        self,
        backend: Backend,
        counts: Tensor | None = None,
        slots: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        out: Tensor = backend.run(
            "mlp",
            x=self.x,
            gamma=self.gamma,
            beta=self.beta,
            eps=EPS,
            w_up=self.up.values,
            up_scales=self.up.scales,
            b_up=self.b_up,
            w_down_t=self.down.values,
            down_scales=self.down.scales,
            b_down=self.b_down,
            counts=counts,
            slots=slots,
            residual=residual,
        )
        return out

    @functools.cached_property
    def normed(self) -> Tensor:
        return layernorm64(self.x, self.gamma, self.beta)

    @functools.cached_property
    def pre_activations(self) -> Tensor:
        return self.normed @ self.up.exact.T + self.b_up.double()

    @functools.cached_property
    def units(self) -> Tensor:
        """Float64 [tokens, intermediate]."""
        return self.pre_activations.relu().square()

    @functools.cached_property
    def off(self) -> Tensor:
        """Of a pre-activation."""
        bound = product_bound(
            self.normed, self.up.exact, self.dtype, self.up.in_fixed_point, self.up.scales_weights
        )
        if self.is_narrow:
            bound = bound + torch.finfo(self.dtype).eps * (self.normed @ self.up.exact.T).abs()
        return bound + 8 * EPS32 * self.b_up.abs()

    @property
    def is_narrow(self) -> bool:
        """Whether products of a CPU come out in 16 bits."""
        return self.up.family == "cpu" and self.up.values.dtype == self.dtype != torch.float32

    @functools.cached_property
    def expected(self) -> Expected:
        exact = self.x.double() + self.units @ self.down.exact + self.b_down.double()
        sums = product_size(self.normed, self.up.exact) + self.b_up.abs()
        # A unit is off by its rounding, and by 2 roots of it times that of its sum.
        units = self.units + 2 * self.units.sqrt() * sums
        size = product_size(units, self.down.exact.T) + self.x.double().abs() + self.b_down.abs()
        return Expected(
            exact,
            self.torchs,
            size,
            self.bound,
            self.dtype,
            roundings=int((self.units > 0).sum()),
            strict=self.up.family == "cuda",
        )

    @property
    def torchs(self) -> Tensor:
        """A power of two for each token brings its units near 1, where float16 holds them."""
        family = self.up.family
        pre = (
            torch_product(layernorm32(self.x, self.gamma, self.beta), self.up.exact, self.dtype, family)
            + self.b_up
        )
        units = pre.relu().square()
        exponents = torch.frexp(units.amax(-1, keepdim=True)).exponent if units.numel() else torch.zeros(1)
        scaled = torch_product(torch.ldexp(units, -exponents), self.down.exact.T, self.dtype, family)
        return (self.x.float() + torch.ldexp(scaled, exponents) + self.b_down).to(self.x.dtype)

    @property
    def bound(self) -> Tensor:
        """What rounding can do: of inputs, carried through relu², of units, and of sums."""
        above = self.pre_activations > -self.off
        units = (self.pre_activations.abs() + self.off).square() * above
        carried = (2 * self.pre_activations.abs() * self.off + self.off.square()) * above
        down = self.down.exact
        sizes = self.x.double().abs() + units @ down.abs() + self.b_down.double().abs()
        total = carried @ down.abs() + (16 * EPS32 + torch.finfo(self.x.dtype).eps) * sizes
        if self.is_narrow:
            total += torch.finfo(self.dtype).eps * sizes
        if self.down.in_fixed_point:
            return total + fixed_units_off(units, self.down)
        return total + product_bound(
            units, down.T, self.dtype, scaled_weights=self.down.fmt in ("int4", "int4-g32")
        )

    def count_bounds(self) -> tuple[int, int]:
        """Of the units that are not 0 for some token: rounding decides a few."""
        least, most = (int((self.pre_activations > margin).any(0).sum()) for margin in (self.off, -self.off))
        return least, most


def fixed_units_off(units: Tensor, down: Weights) -> Tensor:
    """How far off a CPU's product may be by rounding of units: half a step of each, of the largest's size."""
    assert isinstance(down.matrix, TiledMatrix)
    if down.matrix.bits == 8:
        return units.amax(1, keepdim=True) / 65535 / 2 * ((units > 0).double() @ down.exact.abs())
    # A step for each group of columns, of the products of units and scales; Q - 8 is at most 8.
    products = units[:, :, None] * down.matrix.scales[:, 0].double().abs()  # [tokens, units, groups]
    steps = (products.amax(1) * STEP).repeat_interleave(GROUPS["cpu"], 1)[:, : down.matrix.shape[1]]
    return steps / 2 * 8 * (units > 0).sum(1, keepdim=True)


@functools.lru_cache(maxsize=1024)
def known_operands(
    up: Weights, down: Weights, tokens: int, dead: float, dtype: torch.dtype, product_dtype: torch.dtype
) -> Mlp:
    units, hidden = up.exact.shape
    b_up = torch.randn(units) * 0.3
    b_up[torch.rand(units) < dead] = -100.0
    x = (torch.randn(tokens, hidden) * 2 + 0.5).to(dtype)
    return Mlp(x, *norm(hidden), up, b_up, down, torch.randn(hidden), product_dtype)


def operands(
    backend: Backend,
    fmt: str,
    tokens: int,
    hidden: int,
    units: int,
    dead: float = 0.5,
    dtype: torch.dtype = torch.float32,
) -> Mlp:
    """The share ``dead`` of the units is 0 for all tokens; the same for all instruction sets."""
    up = weights(backend, fmt, units, hidden)
    down = weights(backend, fmt, units, hidden, "units")
    return known_operands(up, down, tokens, dead, dtype, backend.product_dtype(fmt))


def check(backend: Backend, mlp: Mlp, what: object = "", counts: Tensor | None = None) -> None:
    mlp.expected.check(mlp.run(backend, counts), f"mlp on {backend}, {mlp.up.fmt}, {what}")

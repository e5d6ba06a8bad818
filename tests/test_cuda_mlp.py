"""mlp in CUDA against float64, in every format, with any share of its units at 0."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
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

# What is added to the up-projection, whose products are near 1, and the share of units that are then about 0.
SHARES = {"none": 100.0, "half": 0.0, "most": -1.5, "all": -100.0}

# tokens, hidden, intermediate: part tiles and words of units, an odd number of tiles, part strips of columns,
# lists of several parts, and shares of them that not every warp has work in
SHAPES = [
    (1, 64, 100),
    (2, 72, 33),
    (3, 136, 31),
    (8, 1000, 96),
    (9, 72, 17),
    (16, 520, 300),
    (1, 136, 2500),
    (1, 4160, 64),
]
if THIN:
    SHAPES = [(1, 72, 100), (9, 136, 33)]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Layer:
    """Operands, and what comes of them in float64 and in torch."""

    def __init__(self, fmt: str, tokens: int, hidden: int, intermediate: int, added: float = 0.0) -> None:
        self.x = torch.randn(tokens, hidden) * 3 + 1
        self.gamma, self.beta = norm(hidden)
        self.up = weights(fmt, intermediate, hidden)
        self.up_bias = torch.randn(intermediate) * 0.3 + added
        self.down = weights(fmt, intermediate, hidden, "units")
        self.down_bias = torch.randn(hidden)

    def on(self, place: Place, counts: Tensor | None = None) -> Tensor:
        x, gamma, beta, up_bias, down_bias = (
            surrounded(one.to(place.device))
            for one in (self.x, self.gamma, self.beta, self.up_bias, self.down_bias)
        )
        up, down = self.up.parts(place), self.down.parts(place)
        out: Tensor = place.operators.mlp(x, gamma, beta, EPS, *up, up_bias, *down, down_bias, counts)
        return out

    @property
    def normalised(self) -> Tensor:
        return layernorm64(self.x, self.gamma, self.beta)

    @property
    def units(self) -> Tensor:
        """Float64 [tokens, intermediate]."""
        return F.relu(self.normalised @ self.up.exact.T + self.up_bias).square()

    @property
    def exact(self) -> Tensor:
        return self.x + self.units @ self.down.exact + self.down_bias

    @property
    def torchs(self) -> Tensor:
        """As reference.py computes it on a GPU: each token's units are scaled by a power of two."""
        units = F.relu(torch_product(self.normalised.float(), self.up) + self.up_bias).square()
        exponents = torch.frexp(units.amax(-1, keepdim=True)).exponent
        down = Weights(self.down.values, self.down.scales, self.down.exact.T)
        products = torch_product(torch.ldexp(units, -exponents), down)
        return self.x + torch.ldexp(products, exponents) + self.down_bias

    @property
    def bound(self) -> Tensor:
        """What rounding can do: of inputs to the units, of units, and of sums."""
        pre = rounding(self.normalised, self.up.exact, self.up.dtype) + 4 * EPS32 * self.up_bias.abs()
        off = 2 * self.units.sqrt() * pre + pre.square()
        rounded = rounding(self.units, self.down.exact.T, self.down.dtype)
        if self.down.scales is not None and self.down.values.dtype == torch.uint8:
            rounded *= 2  # scaled weights are rounded to float16 too
        return off @ self.down.exact.abs() + rounded + 8 * EPS32 * (1 + self.exact.abs() + self.x.abs())


@every_place
@every_format
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(("tokens", "hidden", "intermediate"), SHAPES)
def test_mlp(place: Place, fmt: str, tokens: int, hidden: int, intermediate: int, share: str) -> None:
    layer = Layer(fmt, tokens, hidden, intermediate, SHARES[share])
    if share == "all":
        assert not layer.units.any()
    roundings = int((layer.units > 0).sum())
    assert_close(layer.on(place), layer.exact, layer.bound, layer.torchs, roundings)


@every_place
@every_format
@pytest.mark.parametrize("tokens", [1, 3, 16])
def test_counts_grow_by_the_units_that_are_needed(place: Place, fmt: str, tokens: int) -> None:
    layer = Layer(fmt, tokens, 64, 500, -1.0)
    counts = torch.tensor([7, 1000], device=place.device)
    plain, counted = layer.on(place), layer.on(place, counts)
    assert torch.equal(plain, counted)
    # Where rounding decides whether a unit is 0, both counts are right.
    pre = layer.normalised @ layer.up.exact.T + layer.up_bias
    off = rounding(layer.normalised, layer.up.exact, layer.up.dtype)
    least, most = (int((pre > margin).any(0).sum()) for margin in (off, -off))
    assert least <= counts[0].item() - 7 <= most
    assert counts[1] == 1500


@every_place
@pytest.mark.parametrize("fmt", ["float16", "int4"])
def test_more_units_than_a_block_looks_at_at_once(place: Place, fmt: str) -> None:
    layer = Layer(fmt, 1, 8, 4000 if THIN else 17000)
    assert_close(layer.on(place), layer.exact, layer.bound, layer.torchs)


@every_place
@every_format
def test_rows_of_units_at_0_are_not_read(place: Place, fmt: str) -> None:
    """What stands in them is not finite where the format can say so."""
    layer = Layer(fmt, 2, 136, 100)
    layer.up_bias[::3] = -100
    expected = layer.on(place)
    values = layer.down.values.clone()
    values[::3].view(torch.uint8)[:] = 0x7F
    scales = layer.down.scales
    if fmt == "int4":
        assert scales is not None
        scales = scales.clone()
        scales[::3] = float("nan")
    layer.down = Weights(values, scales, layer.down.exact)
    assert torch.equal(layer.on(place), expected)


@every_place
@every_format
def test_the_same_bits_in_any_order_of_threads(place: Place, fmt: str) -> None:
    for tokens in (1, 12):
        layer = Layer(fmt, tokens, 584, 700)
        expected = layer.on(place)
        for name in ("rev", "1"):
            with another_order(place, name):
                assert torch.equal(layer.on(place), expected)


@every_place
@every_format
@pytest.mark.parametrize("count", [1, 7, 132])
def test_devices_of_any_size(place: Place, fmt: str, count: int) -> None:
    layer = Layer(fmt, 2, 72, 1500)
    with multiprocessors(place, count):
        assert_close(layer.on(place), layer.exact, layer.bound, layer.torchs)


@every_place
@pytest.mark.parametrize("fmt", ["bfloat16", "int4"])
def test_more_tokens_than_shared_memory_has_room_for(place: Place, fmt: str) -> None:
    """The units of two parts of the tokens are read together, and counted once."""
    layer = Layer(fmt, 16, 8192, 40, -1.0)
    counts = torch.zeros(2, dtype=torch.int64, device=place.device)
    ours, roundings = layer.on(place, counts), int((layer.units > 0).sum())
    assert_close(ours, layer.exact, layer.bound, layer.torchs, roundings)
    assert counts.tolist() == [int(layer.units.any(0).sum()), 40]


@every_place
@every_format
@pytest.mark.parametrize("magnitude", [1e-12, 1e10])
def test_units_of_any_magnitude(place: Place, fmt: str, magnitude: float) -> None:
    """float16 holds neither those units, nor those of another token at the same scale."""
    layer = Layer(fmt, 2, 136, 100)
    layer.gamma, layer.beta, layer.up_bias = (
        one * magnitude**0.5 for one in (layer.gamma, layer.beta, layer.up_bias)
    )
    layer.x[1], layer.down_bias = 1.0, torch.zeros(136)  # the second token's normalised inputs are beta
    layer.x *= magnitude * 1e-3 if magnitude < 1 else 1
    off = (layer.on(place).double().cpu() - layer.exact).abs()
    bound = layer.bound - 8 * EPS32 * (1 - layer.exact.abs())
    assert bool((off <= bound).all())


@every_place
@every_format
def test_a_token_that_is_no_number(place: Place, fmt: str) -> None:
    layer = Layer(fmt, 3, 72, 100)
    others = layer.on(place)
    layer.x[1, 5] = float("nan")
    ours = layer.on(place)
    assert bool(ours[1].isnan().all())
    assert bool(ours[[0, 2]].isfinite().all())
    torch.testing.assert_close(ours[[0, 2]], others[[0, 2]])


@every_place
def test_no_tokens_and_no_units(place: Place) -> None:
    counts = torch.zeros(2, dtype=torch.int64, device=place.device)
    assert Layer("float16", 0, 64, 33).on(place, counts).shape == (0, 64)
    assert counts.tolist() == [0, 0]


@every_place
def test_weights_that_are_not_aligned_are_refused(place: Place) -> None:
    layer = Layer("float16", 1, 64, 33)
    memory = torch.zeros(33 * 64 + 1, dtype=torch.float16, device=place.device)
    vectors = (layer.x, layer.gamma, layer.beta, layer.up_bias, layer.down_bias)
    x, gamma, beta, up_bias, down_bias = (one.to(place.device) for one in vectors)
    with pytest.raises(RuntimeError, match="misaligned"):
        place.operators.mlp(
            x,
            gamma,
            beta,
            EPS,
            *layer.up.parts(place),
            up_bias,
            memory[1:].view(33, 64),
            None,
            down_bias,
            None,
        )

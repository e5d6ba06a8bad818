"""mlp against float64, in every format of every backend: units that are 0, and rows that are not read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from backends import BACKENDS, CPU, CUDA, EPS, KERNELS, THIN, Backend, in_formats, on, parameter
from closeness import assert_close
from matrices import (
    Weights,
    assert_within,
    layernorm32,
    weights_of,
)
from mlp_operands import Mlp, check, operands
from torch import Tensor

from adept_fast import ops
from adept_fast.ops import cpu

NAN = float("nan")

# The share of units that are 0 for every token; of the others about half is for each.
SHARES = {"none": 0.0, "half": 0.5, "most": 0.95, "all": 1.0}

# tokens, hidden, units: whole and part strips of columns, padding to 128, parts of the list of units, part
# tiles and words of it, an odd number of tiles, blocks of tokens, shares of the list without work for every
# warp
SHAPES = [
    (1, 64, 256),
    (2, 72, 321),
    (3, 136, 31),
    (5, 200, 77),
    (8, 1000, 96),
    (9, 72, 17),
    (16, 520, 300),
    (1, 136, 2500),
    (4, 1024, 40),
    (1, 2104, 66),
    (2, 4160, 35),
    (3, 75, 1),
    (17, 128, 63),
    (33, 48, 9),
]
if THIN:
    SHAPES = [(1, 72, 100), (9, 136, 33), (3, 1100, 40)]


def takes(backend: Backend, tokens: int, hidden: int) -> bool:
    return tokens <= backend.max_tokens and (backend.family == "cpu" or hidden % 8 == 0)


# Each shape has one share, or two of a GPU, in each format, and others in the next format and backend.
CASES = [
    parameter(one, fmt, shape, share, name=f"{fmt}-{'x'.join(map(str, shape))}-{share} 0")
    for number, one in enumerate(BACKENDS)
    for first, fmt in enumerate(one.formats, number)
    for step in [2 if one.family == "cuda" else 4]
    for at, shape in enumerate(SHAPES, first)
    for share in list(SHARES)[at % step :: step]
    if takes(one, *shape[:2])
]


@pytest.mark.parametrize(("backend", "fmt", "shape", "share"), CASES, indirect=["backend"])
def test_mlp(backend: Backend, fmt: str, shape: tuple[int, int, int], share: str) -> None:
    mlp = operands(backend, fmt, *shape, SHARES[share])
    counts = torch.tensor([10, 1000])
    check(backend, mlp, (shape, share), counts)
    least, most = mlp.count_bounds()
    assert least <= counts[0] - 10 <= most
    assert counts[1] == 1000 + shape[2]
    assert share != "all" or most == 0


@in_formats(BACKENDS)
def test_without_a_unit_the_input_and_the_bias_are_left(backend: Backend, fmt: str) -> None:
    mlp = operands(backend, fmt, 3, 72, 40, dead=1.0)
    assert torch.equal(mlp.run(backend), mlp.x + mlp.b_down)


@in_formats(CPU)
def test_from_bfloat16(backend: Backend, fmt: str) -> None:
    check(backend, operands(backend, fmt, 3, 80, 100, dtype=torch.bfloat16))


def poisoned(down: Weights, rows: Tensor, filler: float) -> Weights:
    """A transposed matrix in which these rows must not be read."""
    values, scales = down.values.clone(), None if down.scales is None else down.scales.clone()
    if values.dtype in (torch.float32, torch.float16, torch.bfloat16):
        values[rows] = filler
    else:
        values.view(torch.uint8)[rows] = 0x7F
    if scales is not None and scales.ndim > 1:  # of 4 bits, whose scales lie along rows
        scales[rows] = filler
    return replace(down, values=values, scales=scales)


@in_formats(KERNELS)
@pytest.mark.parametrize("dead", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("tokens", [9] if THIN else [1, 2, 9])
def test_rows_whose_unit_is_0_are_never_read(backend: Backend, fmt: str, tokens: int, dead: float) -> None:
    mlp = operands(backend, fmt, tokens, 136, 203, dead)
    unneeded = (mlp.pre_activations < -mlp.off).all(0)
    assert unneeded.any()
    clean = mlp.run(backend)
    for filler in (NAN, 1e4):
        spoilt = replace(mlp, down=poisoned(mlp.down, unneeded, filler))
        assert torch.equal(spoilt.run(backend), clean), filler


@in_formats(BACKENDS)
def test_tokens_that_need_different_rows(backend: Backend, fmt: str) -> None:
    """Token t needs rows 3t to 3t + 4 alone; all of them are read, and its own count for it."""
    tokens, hidden, units = 9, 96, 40
    up = torch.zeros(units, hidden)
    for token in range(tokens):
        up[3 * token : 3 * token + 5, token] = 1.0
    mlp = replace(
        operands(backend, fmt, tokens, hidden, units, dead=0.0),
        x=torch.eye(tokens, hidden) * 10,
        gamma=torch.ones(hidden),
        beta=torch.zeros(hidden),
        up=weights_of(backend, fmt, up),
        b_up=torch.full((units,), -1.0),
    )
    needed = mlp.units != 0
    assert needed.any(0).sum() == 3 * tokens + 2
    assert (needed.sum(1) == 5).all()
    counts = torch.zeros(2, dtype=torch.int64)
    check(backend, mlp, "together", counts)
    assert counts.tolist() == [3 * tokens + 2, units]
    together = mlp.run(backend)
    for token in range(tokens):
        alone = replace(mlp, x=mlp.x[token : token + 1]).run(backend)
        off = 2 * mlp.bound[token : token + 1]
        assert_within(alone, together[token : token + 1].double(), off, f"mlp on {backend}, token {token}")
    if backend.family == "cuda" and mlp.down.values.dtype in (torch.float16, torch.bfloat16):
        for filler in (NAN, float("inf")):
            spoilt = replace(mlp, down=poisoned(mlp.down, needed[-1] & ~needed[:-1].any(0), filler))
            found = spoilt.run(backend)
            assert torch.equal(found[:-1], together[:-1])
            assert not found[-1].isfinite().any()


@in_formats(BACKENDS)
@pytest.mark.parametrize("pre_activation", [300.0, 1000.0, 2e4])
def test_relu_squared_does_not_overflow(backend: Backend, fmt: str, pre_activation: float) -> None:
    """Of one unit, 256 is the last whose square float16 would hold; others are small beside it."""
    hidden, units = 64, 130
    b_up = torch.full((units,), -1.0)
    b_up[[2, 77, 129]] = torch.tensor([pre_activation, 1.0, 0.5])
    mlp = replace(
        operands(backend, fmt, 2, hidden, units),
        gamma=torch.zeros(hidden),
        beta=torch.ones(hidden),  # every normalised value is 1
        up=weights_of(backend, fmt, torch.zeros(units, hidden)),
        b_up=b_up,
        b_down=torch.zeros(hidden),
    )
    check(backend, mlp, pre_activation)


@in_formats(CUDA)
@pytest.mark.parametrize("magnitude", [1e-12, 1e10])
def test_units_of_any_magnitude(backend: Backend, fmt: str, magnitude: float) -> None:
    """float16 holds neither those units, nor those of another token at the same scale."""
    mlp = operands(backend, fmt, 2, 136, 100, dead=0.0)
    x = mlp.x * (magnitude * 1e-3 if magnitude < 1 else 1)
    x[1] = 1.0  # the second token's normalised inputs are beta
    scaled = {name: getattr(mlp, name) * magnitude**0.5 for name in ("gamma", "beta", "b_up")}
    mlp = replace(mlp, x=x, b_down=torch.zeros(136), **scaled)
    assert_within(mlp.run(backend), mlp.expected.exact, mlp.bound, f"mlp on {backend}, {fmt}")


@in_formats(KERNELS)
@pytest.mark.parametrize("bad", [NAN, float("inf")])
@pytest.mark.parametrize("tokens", [2] if THIN else [1, 2, 6])
def test_what_is_not_finite_stays_with_its_token(backend: Backend, fmt: str, bad: float, tokens: int) -> None:
    mlp = operands(backend, fmt, tokens, 80, 100)
    clean = mlp.run(backend)
    x = mlp.x.clone()
    x[-1, 79] = bad
    found = replace(mlp, x=x).run(backend)
    assert torch.equal(found[:-1], clean[:-1])  # although a NaN needs every row
    assert found[-1].isnan().all()


@in_formats(KERNELS)
@pytest.mark.parametrize(
    ("tokens", "hidden", "units"), [(16, 136, 300)] if THIN else [(1, 72, 1500), (12, 584, 300)]
)
def test_however_work_is_shared_out(backend: Backend, fmt: str, tokens: int, hidden: int, units: int) -> None:
    mlp = operands(backend, fmt, tokens, hidden, units)
    expected = mlp.run(backend)
    for other in [*backend.schedules(), *backend.sizes()]:
        with other:
            assert torch.equal(mlp.run(backend), expected)


@in_formats(CPU)
def test_threads_change_no_bit_of_many_tasks(backend: Backend, fmt: str) -> None:
    """As many tokens and columns as make more tasks of every kind than there are threads."""
    mlp = operands(backend, fmt, *((17, 700, 100) if THIN else (33, 2500, 150)))
    expected = mlp.run(backend)
    for schedule in backend.schedules():
        with schedule:
            assert torch.equal(mlp.run(backend), expected)


@in_formats(CUDA, ("float16", "int4"))
def test_more_units_than_a_block_looks_at_at_once(backend: Backend, fmt: str) -> None:
    check(backend, operands(backend, fmt, 1, 8, 4000 if THIN else 17000))


@in_formats(CUDA, ("bfloat16", "int4"))
def test_more_tokens_than_shared_memory_has_room_for(backend: Backend, fmt: str) -> None:
    """The units of two parts of the tokens, most of one token, are read together, and counted once."""
    mlp, counts = operands(backend, fmt, 16, 8192, 40, 0.3), torch.zeros(2, dtype=torch.int64)
    mlp = replace(mlp, b_up=mlp.b_up - 1.0)
    needed = mlp.units > 0
    assert (needed[:8].any(0) & ~needed[8:].any(0)).any()
    check(backend, mlp, counts=counts)
    assert counts.tolist() == [int(mlp.units.any(0).sum()), 40]


@in_formats(BACKENDS)
@pytest.mark.parametrize("tokens", [3] if THIN else [1, 3, 12])
def test_absent_tokens(backend: Backend, fmt: str, tokens: int) -> None:
    """Their units are 0 and not counted: no row is read for them alone. NaN as an input does not matter."""
    mlp = operands(backend, fmt, tokens, 136, 203)
    slots = torch.arange(tokens) % 3 - 1  # the first is absent
    absent, counts, expected = slots < 0, torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    found = mlp.run(backend, counts, slots)
    assert torch.equal(found[absent], (mlp.x + mlp.b_down)[absent])
    if tokens > 1:
        present = replace(mlp, x=mlp.x[~absent])
        clean = present.run(backend, expected)
        assert backend.kind == "reference" or torch.equal(found[~absent], clean)
        assert counts.tolist() == expected.tolist()
        unneeded = (present.pre_activations < -present.off).all(0)
        spoilt = replace(mlp, x=mlp.x.clone(), down=poisoned(mlp.down, unneeded, NAN))
        spoilt.x[absent] = NAN
        assert backend.kind == "reference" or torch.equal(spoilt.run(backend, None, slots)[~absent], clean)
    else:
        assert counts.tolist() == [0, 203]


@on([one for one in CPU if "int8" in one.formats])
def test_65536_units_of_8_bits(backend: Backend) -> None:
    """The largest units and weights that there may be: no sum overflows."""
    hidden, units = 4, 65536
    down = torch.ones(units, hidden)
    down[:, 1], down[::2, 2] = -1, -1
    zeros = torch.zeros(hidden)
    mlp = Mlp(
        torch.zeros(2, hidden),
        zeros,
        zeros,
        weights_of(backend, "int8", torch.zeros(units, hidden)),
        torch.ones(units),  # both bytes 255
        weights_of(backend, "int8", down, "units"),
        zeros,
        torch.bfloat16,
    )
    assert (mlp.run(backend) - mlp.units @ mlp.down.exact).abs().max() <= 1e-5 * units


@in_formats(KERNELS)
def test_no_tokens(backend: Backend, fmt: str) -> None:
    counts = torch.zeros(2, dtype=torch.int64)
    mlp = replace(operands(backend, fmt, 1, 64, 33), x=torch.zeros(0, 64))
    assert mlp.run(backend, counts).shape == (0, 64)
    assert counts.tolist() == [0, 0]


@in_formats(CPU[:1])
@pytest.mark.parametrize("bfloat16_products", [True, False])
@pytest.mark.parametrize("tokens", [16, 17, 48, 49, 70])
def test_many_tokens_go_to_torch(
    backend: Backend, fmt: str, tokens: int, bfloat16_products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``ops.mlp`` as prefill calls it, if torch multiplies bfloat16 fast and if it does not."""
    monkeypatch.setattr(cpu, "_HAS_BFLOAT16", bfloat16_products)
    mlp = operands(backend, fmt, tokens, 150, 203)
    ours = by_python(mlp)
    assert ours.dtype == torch.float32
    normed = layernorm32(mlp.x, mlp.gamma, mlp.beta)
    narrow = torch.float32 if fmt in ("float32", "float16") else torch.bfloat16
    units = F.linear(normed.to(narrow), mlp.up.exact.to(narrow)).float() + mlp.b_up
    down = units.relu().square().to(narrow) @ mlp.down.exact.to(narrow)
    expected = mlp.expected
    assert_close(ours, expected.exact, mlp.x + down.float() + mlp.b_down, expected.size, "", narrow)


@in_formats(CPU[:1])
def test_many_tokens_with_counts_stay_with_the_kernels(backend: Backend, fmt: str) -> None:
    mlp, counts = operands(backend, fmt, 60, 96, 100, dead=0.9), torch.zeros(2, dtype=torch.int64)
    mlp.expected.check(by_python(mlp, counts), f"mlp, {fmt}")
    assert counts.tolist() == [int((mlp.units != 0).any(0).sum()), 100]


def by_python(mlp: Mlp, counts: Tensor | None = None) -> Tensor:
    assert mlp.up.matrix is not None
    assert mlp.down.matrix is not None
    return ops.mlp(
        mlp.x, mlp.gamma, mlp.beta, EPS, mlp.up.matrix, mlp.b_up, mlp.down.matrix, mlp.b_down, counts
    )


@on(KERNELS)
def test_another_residual_is_added_in_place_of_x(backend: Backend) -> None:
    for fmt in backend.formats:
        mlp = operands(backend, fmt, 3, 48, 40)
        residual = torch.randn_like(mlp.x)
        of_x, of_other = mlp.run(backend), mlp.run(backend, residual=residual)
        found, expected = of_other.double() - residual.double(), of_x.double() - mlp.x.double()
        assert torch.allclose(found, expected, atol=1e-4, rtol=1e-5), fmt
        assert torch.equal(mlp.run(backend, residual=mlp.x.clone()), of_x)


@on(KERNELS)
def test_counts_go_on_past_64_bits(backend: Backend) -> None:
    """As torch's sums of int64 do, to which the definition leaves them."""
    for fmt in backend.formats:
        mlp = operands(backend, fmt, 2, 48, 40)
        grown, counts = torch.zeros(2, dtype=torch.int64), torch.tensor([2**63 - 3, -5])
        expected = counts.clone()
        mlp.run(backend, grown)
        assert grown[0] > 3
        expected += grown
        mlp.run(backend, counts)
        assert torch.equal(counts, expected)
        assert counts[0] < 0 < counts[1]

"""rotary_append in CUDA against float64, over head sizes and cache dtypes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from closeness import assert_close, rotary_size
from cuda_place import THIN, Place, every_place
from cuda_place import inputs_arrive as inputs_arrive
from torch import Tensor

from adept_fast.ops import reference

EPS = 1e-5
NAN, INFINITY = float("nan"), float("inf")
CACHES = [torch.float32, torch.float16, torch.bfloat16]
# heads, head_dim
HEADS = [(1, 8), (3, 16), (5, 20), (2, 24), (2, 64), (1, 80), (1, 96), (1, 128), (9, 136), (1, 256)]
if THIN:
    HEADS = [(5, 20), (1, 64)]

every_cache = pytest.mark.parametrize("cache_dtype", CACHES, ids=str)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def append(place: Place, qkv: Tensor, norms: tuple[Tensor | None, ...], *tables_and_where: Tensor) -> Tensor:
    """Writes the last argument, the cache, and returns q; everything on the CPU."""
    *operands, cache = (tensor.to(place.device) for tensor in tables_and_where)
    moved = [norm if norm is None else norm.to(place.device) for norm in norms]
    q = place.operators.rotary_append(qkv.to(place.device), *moved, EPS, *operands, cache)
    tables_and_where[-1].copy_(cache)
    return q.cpu()


def layernorm64(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt() * gamma.double() + beta.double()


def rotated64(x: Tensor, norms: tuple[Tensor, ...] | None, position: int, rotary_dim: int) -> Tensor:
    """As complex numbers: pair i of a head turns by position · θ^(−2i / rotary_dim)."""
    x = x.double() if norms is None else layernorm64(x.double(), *norms)
    half = rotary_dim // 2
    pairs = torch.complex(x[..., :half], x[..., half:rotary_dim])
    angles = position * 10000.0 ** (-torch.arange(half).double() * 2 / max(rotary_dim, 1))
    pairs = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([pairs.real, pairs.imag, x[..., rotary_dim:]], -1)


def rotary_table(rotary_dim: int, positions: int) -> tuple[Tensor, Tensor]:
    return reference.rotary_table(rotary_dim, 10000.0, positions, torch.device("cpu"))


def random_norms(head_dim: int) -> tuple[Tensor, ...]:
    """gamma and beta of q, then of k."""
    return tuple(one + 0.2 * torch.randn(head_dim) for one in (1, 0, 1, 0))


@every_cache
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("normed", [True, False], ids=["with LayerNorm", "without"])
@every_place
def test_rotary_append(place: Place, normed: bool, share: float, cache_dtype: torch.dtype) -> None:
    for heads, head_dim in HEADS:
        rotary_dim = int(head_dim * share) // 2 * 2
        slots, positions = torch.tensor([2, 0, 2, 1]), torch.tensor([0, 5, 8, 19])
        qkv = torch.randn(4, 3 * heads * head_dim) * 2 + 0.5
        cos, sin = rotary_table(rotary_dim, 25)
        norms = random_norms(head_dim) if normed else (None,) * 4
        cache = torch.full((2, 3, heads, 20, head_dim), -7.0, dtype=cache_dtype)
        by_torch = cache.clone()
        q = append(place, qkv, norms, cos, sin, slots, positions, cache)
        theirs = reference.rotary_append(qkv, *norms, EPS, cos, sin, slots, positions, by_torch)
        parts = qkv.view(4, heads, 3, head_dim)
        untouched = torch.ones_like(cache, dtype=torch.bool)
        for token, (slot, position) in enumerate(zip(slots.tolist(), positions.tolist(), strict=True)):
            what = (heads, head_dim, position)
            q_norm, k_norm = (norms[:2], norms[2:]) if normed else (None, None)
            exact_q = rotated64(parts[token, :, 0], q_norm, position, rotary_dim)
            exact_k = rotated64(parts[token, :, 1], k_norm, position, rotary_dim)
            k, k_of_torch = (each[0, slot, :, position] for each in (cache, by_torch))
            q_size, k_size = (
                rotary_size(parts[token, :, part], norm, EPS) for part, norm in ((0, q_norm), (1, k_norm))
            )
            assert_close(q[token], exact_q, theirs[token], q_size, what)
            assert_close(k, exact_k, k_of_torch, k_size, what)
            assert torch.equal(cache[1, slot, :, position], parts[token, :, 2].to(cache_dtype)), what
            untouched[:, slot, :, position] = False
        assert (cache[untouched] == -7).all()


@every_place
def test_a_token_without_a_place_is_left_out(place: Place) -> None:
    """Its q is 0, nothing is written for it, and the others are as without it."""
    heads, head_dim, capacity = 3, 16, 6
    slots = torch.tensor([0, -1, 2, 1, 1, 1, 2**40])
    positions = torch.tensor([3, 0, 0, -1, capacity, capacity - 1, 2**40])
    good = [0, 5]
    qkv, norms = torch.randn(7, 3 * heads * head_dim), random_norms(head_dim)
    tables = rotary_table(8, capacity)
    cache = torch.full((2, 2, heads, capacity, head_dim), -7.0)
    alone = cache.clone()
    q = append(place, qkv, norms, *tables, slots, positions, cache)
    q_alone = append(place, qkv[good], norms, *tables, slots[good], positions[good], alone)
    assert torch.equal(q[good], q_alone)
    assert torch.equal(cache, alone)
    assert not q[[1, 2, 3, 4, 6]].any()


@every_place
def test_only_one_of_the_norms(place: Place) -> None:
    qkv, tables, zero = torch.randn(1, 3 * 24), rotary_table(8, 4), torch.tensor([0])
    for norms in ((*random_norms(24)[:2], None, None), (None, None, *random_norms(24)[2:])):
        cache = torch.zeros(2, 1, 1, 4, 24)
        q = append(place, qkv, norms, *tables, zero, zero, cache)
        for found, part, norm in ((q[0], 0, norms[:2]), (cache[0, 0, :, 0], 1, norms[2:])):
            x = qkv.view(1, 3, 24)[:, part]
            expected = x if norm[0] is None else F.layer_norm(x, (24,), norm[0], norm[1], EPS)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cache_dtype", [torch.float16, torch.bfloat16], ids=str)
@every_place
def test_values_are_rounded_as_torch_rounds(place: Place, cache_dtype: torch.dtype) -> None:
    """To nearest, ties to even, subnormals and overflow too, a NaN stays one."""
    special = [0.0, -0.0, 65504.0, 65519.9, 65520.0, 1e30, INFINITY, -INFINITY, NAN, 6e-8, 2e-8, 3e-8, 1e-40]
    ties = [1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-8, 2**-24 * 1.5, 2**-24 * 0.5, 3.39e38, -1e-5]
    exponents = torch.randint(-30, 20, (200,)).float()
    values = torch.cat([torch.tensor(special), torch.tensor(ties), torch.randn(200) * exponents.exp2()])
    head_dim = len(values)
    qkv = torch.cat([torch.zeros(2 * head_dim), values])[None]
    cache = torch.zeros(2, 1, 1, 1, head_dim, dtype=cache_dtype)
    zero, table = torch.tensor([0]), torch.ones(1, 1)
    append(place, qkv, (None,) * 4, table, table, zero, zero, cache)
    expected, found = values.to(cache_dtype), cache[1, 0, 0, 0]
    assert torch.equal(found.isnan(), expected.isnan())
    same = ~expected.isnan()
    assert torch.equal(found[same].view(torch.int16), expected[same].view(torch.int16))


@every_place
def test_rotary_append_gives_the_same_bits_in_any_order(place: Place) -> None:
    qkv, norms, tables = torch.randn(2, 3 * 9 * 24), random_norms(24), rotary_table(8, 7)
    where = torch.tensor([1, 0]), torch.tensor([6, 2])
    expected = torch.zeros(2, 2, 9, 7, 24).half()
    first = append(place, qkv, norms, *tables, *where, expected)
    for order in place.orders:
        cache = torch.zeros_like(expected)
        with place.order(order):
            assert torch.equal(append(place, qkv, norms, *tables, *where, cache), first)
        assert torch.equal(cache, expected)


@every_place
def test_no_tokens_to_append(place: Place) -> None:
    none = torch.zeros(0).long()
    q = append(
        place, torch.zeros(0, 48), (None,) * 4, *rotary_table(8, 4), none, none, torch.zeros(2, 1, 1, 4, 16)
    )
    assert q.shape == (0, 1, 16)


@every_place
def test_queries_come_back_in_the_dtype_of_qkv(place: Place) -> None:
    qkv, tables = torch.randn(2, 3 * 2 * 16).bfloat16(), rotary_table(8, 8)
    where = torch.tensor([0, 2]), torch.tensor([7, 0])
    caches = torch.zeros(2, 2, 3, 2, 8, 16)
    narrow = append(place, qkv, (None,) * 4, *tables, *where, caches[0])
    wide = append(place, qkv.float(), (None,) * 4, *tables, *where, caches[1])
    assert torch.equal(narrow, wide.bfloat16())
    assert torch.equal(caches[0], caches[1])

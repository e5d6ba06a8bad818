"""rotary_append against float64, over head sizes and cache dtypes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from backends import BACKENDS, EPS, FLOATS, KERNELS, THIN, Backend, every_backend, on, same_bits
from closeness import assert_close, rotary_size
from matrices import layernorm64, norm
from torch import Tensor

from adept_fast.ops import reference

NAN, INFINITY = float("nan"), float("inf")
HEADS = [(1, 8), (3, 16), (5, 20), (2, 24), (2, 64), (1, 80), (1, 96), (1, 128), (9, 136), (1, 256), (32, 64)]
if THIN:
    HEADS = [(5, 20), (1, 64)]  # heads, head_dim
ABSENT = [(-1, 3), (-1, -7), (-1, 4), (-1, 0), (-1, 2**62)]  # slot and position
# Where the operator cannot refuse them. Of 3 slots and 6 positions.
NOT_THERE = [
    (3, 0),
    (-2, 0),
    (2**40, 0),
    (2**63 - 1, 1),
    (-(2**63), 2),
    (1, -1),
    (2, 6),
    (0, -(2**63)),
    (1, 2**40),
]

every_cache = pytest.mark.parametrize("cache_dtype", FLOATS.values(), ids=FLOATS)
Norms = tuple[Tensor, ...] | tuple[None, ...]


def append(
    backend: Backend, qkv: Tensor, norms: Norms, tables: tuple[Tensor, Tensor], *where: Tensor
) -> Tensor:
    """``where``: slots, positions, and the cache, which is written. Returns q."""
    names = ("q_gamma", "q_beta", "k_gamma", "k_beta")
    arguments = {"qkv": qkv, **dict(zip(names, norms, strict=True)), "eps": EPS}
    arguments |= zip(("cos", "sin", "slots", "positions", "cache_layer"), (*tables, *where), strict=True)
    q: Tensor = backend.run("rotary_append", **arguments)
    return q


def rotary_table(rotary_dim: int, positions: int) -> tuple[Tensor, Tensor]:
    return reference.rotary_table(rotary_dim, 10000.0, positions, torch.device("cpu"))


def random_norms(head_dim: int) -> tuple[Tensor, ...]:
    """gamma and beta of q, then of k."""
    return (*norm(head_dim), *norm(head_dim))


def rotated64(x: Tensor, norms: Norms, position: int, rotary_dim: int) -> Tensor:
    """As complex numbers: pair i of a head turns by position · θ^(−2i / rotary_dim)."""
    gamma, beta = norms
    x = x.double() if gamma is None or beta is None else layernorm64(x, gamma, beta)
    half = rotary_dim // 2
    pairs = torch.complex(x[..., :half], x[..., half:rotary_dim])
    angles = position * 10000.0 ** (-torch.arange(half).double() * 2 / max(rotary_dim, 1))
    pairs = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([pairs.real, pairs.imag, x[..., rotary_dim:]], -1)


@every_cache
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("normed", [True, False], ids=["with LayerNorm", "without"])
@every_backend
def test_rotary_append(backend: Backend, normed: bool, share: float, cache_dtype: torch.dtype) -> None:
    """The rotation of each head and the write of its key and value, and nothing else in the cache."""
    for heads, head_dim in HEADS:
        rotary_dim = int(head_dim * share) // 2 * 2
        slots, positions = torch.tensor([2, 0, 2, 1]), torch.tensor([0, 5, 8, 19])
        qkv, tables = torch.randn(4, 3 * heads * head_dim) * 2 + 0.5, rotary_table(rotary_dim, 25)
        norms: Norms = random_norms(head_dim) if normed else (None,) * 4
        cache = torch.full((2, 3, heads, 20, head_dim), -7.0, dtype=cache_dtype)
        by_torch = cache.clone()
        q = append(backend, qkv, norms, tables, slots, positions, cache)
        theirs = reference.rotary_append(qkv, *norms, EPS, *tables, slots, positions, by_torch)
        parts = qkv.view(4, heads, 3, head_dim)
        untouched = torch.ones_like(cache, dtype=torch.bool)
        for token, (slot, position) in enumerate(zip(slots.tolist(), positions.tolist(), strict=True)):
            what = f"rotary_append on {backend}, {heads} heads of {head_dim}, position {position}"
            k, k_of_torch = (each[0, slot, :, position] for each in (cache, by_torch))
            for ours, of_torch, part in ((q[token], theirs[token], 0), (k, k_of_torch, 1)):
                of_part = norms[2 * part : 2 * part + 2]
                x = parts[token, :, part]
                exact = rotated64(x, of_part, position, rotary_dim)
                size = rotary_size(x, of_part if normed else None, EPS)
                assert_close(ours, exact, of_torch, size, f"{what}, {'qk'[part]}")
            assert torch.equal(cache[1, slot, :, position], parts[token, :, 2].to(cache_dtype)), what
            untouched[:, slot, :, position] = False
        assert (cache[untouched] == -7).all(), (heads, head_dim)


@every_cache
@pytest.mark.parametrize("present", [[], [1], [1, 3], [0, 1, 3]], ids=lambda present: f"with {present}")
@every_backend
def test_a_token_without_a_slot_or_position_is_left_out(
    backend: Backend, present: list[int], cache_dtype: torch.dtype
) -> None:
    """Its q is 0, nothing is written for it, and the others are as without it."""
    where = ABSENT if backend.refuses_values else [*ABSENT, *NOT_THERE]
    where = [*where[:2], (0, 5), *where[2:]]
    for row, at in zip(present, [(0, 0), (2, 5), (1, 3)], strict=False):
        where[row] = at
    rows = [row for row in range(len(where)) if 0 <= where[row][0] < 3 and 0 <= where[row][1] < 6]
    slots, positions = (torch.tensor(column) for column in zip(*where, strict=True))
    qkv, norms, tables = torch.randn(len(where), 3 * 3 * 16), random_norms(16), rotary_table(8, 6)
    absent = [row for row in range(len(where)) if row not in rows]
    qkv[absent[-1]] = NAN
    cache = torch.randn(2, 3, 3, 6, 16).to(cache_dtype)
    alone = cache.clone()
    q = append(backend, qkv, norms, tables, slots, positions, cache)
    for row in rows:
        one = slice(row, row + 1)
        expected = append(backend, qkv[one], norms, tables, slots[one], positions[one], alone)
        assert torch.equal(q[one], expected)
    assert same_bits(cache, alone)
    assert not q[absent].any()


@every_backend
def test_no_token_is_there(backend: Backend) -> None:
    none = torch.full((5,), -1)
    cache = torch.full((2, 2, 2, 6, 16), NAN)
    q = append(backend, torch.randn(5, 96), random_norms(16), rotary_table(8, 6), none, none, cache)
    assert not q.any()
    assert cache.isnan().all()


@on([one for one in BACKENDS if one.family == "cuda"])
def test_only_one_of_the_norms(backend: Backend) -> None:
    qkv, tables, zero = torch.randn(1, 3 * 24), rotary_table(8, 4), torch.tensor([0])
    for norms in ((*norm(24), None, None), (None, None, *norm(24))):
        cache = torch.zeros(2, 1, 1, 4, 24)
        q = append(backend, qkv, norms, tables, zero, zero, cache)
        for found, part in ((q[0], 0), (cache[0, 0, :, 0], 1)):
            gamma, beta = norms[2 * part : 2 * part + 2]
            x = qkv.view(1, 3, 24)[:, part]
            expected = x if gamma is None else F.layer_norm(x, (24,), gamma, beta, EPS)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cache_dtype", [torch.float16, torch.bfloat16], ids=str)
@on(KERNELS)
def test_values_are_rounded_as_torch_rounds(backend: Backend, cache_dtype: torch.dtype) -> None:
    """To nearest, ties to even, subnormals and overflow too, a NaN stays one."""
    special = [0.0, -0.0, 65504.0, 65519.9, 65520.0, 1e30, INFINITY, -INFINITY, NAN, 6e-8, 2e-8, 3e-8, 1e-40]
    ties = [1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-8, 2**-24 * 1.5, 2**-24 * 0.5, 3.39e38, -1e-5]
    exponents = torch.randint(-30, 20, (200,)).float()
    values = torch.cat([torch.tensor(special), torch.tensor(ties), torch.randn(200) * exponents.exp2()])
    head_dim = len(values)
    qkv = torch.cat([torch.zeros(2 * head_dim), values])[None]
    cache = torch.zeros(2, 1, 1, 1, head_dim, dtype=cache_dtype)
    zero, table = torch.tensor([0]), torch.ones(1, 1)
    append(backend, qkv, (None,) * 4, (table, table), zero, zero, cache)
    expected, found = values.to(cache_dtype), cache[1, 0, 0, 0]
    assert torch.equal(found.isnan(), expected.isnan())
    same = ~expected.isnan()
    assert same_bits(found[same], expected[same])


@on(KERNELS)
def test_the_same_bits_however_work_is_shared_out(backend: Backend) -> None:
    qkv, norms, tables = torch.randn(40, 3 * 9 * 24), random_norms(24), rotary_table(8, 41)
    where = torch.arange(40) % 2, torch.arange(40)
    expected = torch.zeros(2, 2, 9, 41, 24).half()
    first = append(backend, qkv, norms, tables, *where, expected)
    for schedule in backend.schedules():
        cache = torch.zeros_like(expected)
        with schedule:
            assert torch.equal(append(backend, qkv, norms, tables, *where, cache), first)
        assert torch.equal(cache, expected)


@on(KERNELS)
def test_no_tokens_to_append(backend: Backend) -> None:
    none, cache = torch.zeros(0).long(), torch.zeros(2, 1, 1, 4, 16)
    q = append(backend, torch.zeros(0, 48), (None,) * 4, rotary_table(8, 4), none, none, cache)
    assert q.shape == (0, 1, 16)


@on(KERNELS)
def test_queries_come_back_in_the_dtype_of_qkv(backend: Backend) -> None:
    qkv, tables = torch.randn(2, 3 * 2 * 16).bfloat16(), rotary_table(8, 8)
    where = torch.tensor([0, 2]), torch.tensor([7, 0])
    caches = torch.zeros(2, 2, 3, 2, 8, 16)
    narrow = append(backend, qkv, (None,) * 4, tables, *where, caches[0])
    wide = append(backend, qkv.float(), (None,) * 4, tables, *where, caches[1])
    assert torch.equal(narrow, wide.bfloat16())
    assert torch.equal(caches[0], caches[1])

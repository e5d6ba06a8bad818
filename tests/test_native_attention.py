"""rotary_append and decode_attention in C++ against float64, over head sizes, lengths and cache dtypes."""

from __future__ import annotations

import native
import pytest
import torch
from closeness import assert_close, attention_size, rotary_size
from native import EPS, call
from native import settled as settled
from torch import Tensor

from adept_fast.ops import reference

NAN, INFINITY = float("nan"), float("inf")
CAPACITY = 2050
CACHES = [torch.float32, torch.float16, torch.bfloat16]
HEADS = [(1, 8), (3, 16), (2, 20), (1, 64), (3, 80), (2, 96), (32, 128)]  # heads, head_dim
LENGTHS = [0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 200]
if native.THIN:
    HEADS, LENGTHS = [(3, 20), (1, 64)], [0, 1, 15, 17, 64, 65]

every_cache = pytest.mark.parametrize("cache_dtype", CACHES, ids=str)
every_head = pytest.mark.parametrize(("heads", "head_dim"), HEADS)


def attention64(q: Tensor, cache: Tensor, slots: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """[tokens, heads * head_dim], token by token."""
    rows = []
    for token, (slot, length) in enumerate(zip(slots.tolist(), lengths.tolist(), strict=True)):
        k, v = cache[:, slot, :, :length].double()  # [heads, length, head_dim]
        scores = (k @ q[token].double()[..., None])[..., 0] * scale  # [heads, length]
        rows.append((scores.softmax(-1)[:, None] @ v).flatten())
    return torch.stack(rows)


def attend(q: Tensor, cache: Tensor, slots: Tensor, lengths: Tensor, scale: float) -> Tensor:
    attended: Tensor = call.decode_attention(q, cache, slots, lengths, int(lengths.max()), scale)
    return attended


def attention32(q: Tensor, cache: Tensor, slots: Tensor, lengths: Tensor, scale: float) -> Tensor:
    return reference.decode_attention(q.float(), cache, slots, lengths, int(lengths.max()), scale).to(q.dtype)


def poison_past(cache: Tensor, slots: Tensor, lengths: Tensor, filler: float) -> Tensor:
    """A copy with ``filler`` wherever no length reaches, in slots of no token too."""
    poisoned = torch.full_like(cache, filler)
    for slot, length in zip(slots.tolist(), lengths.tolist(), strict=True):
        poisoned[:, slot, :, :length] = cache[:, slot, :, :length]
    return poisoned


@every_cache
@every_head
@native.every_set
def test_decode_attention(isa: str, heads: int, head_dim: int, cache_dtype: torch.dtype) -> None:
    tokens, scale = len(LENGTHS), head_dim**-0.5
    slots, lengths = torch.randperm(tokens + 1)[:tokens], torch.tensor(LENGTHS)
    cache = torch.randn(2, tokens + 1, heads, max(LENGTHS), head_dim).to(cache_dtype)
    q = torch.randn(tokens, heads, head_dim) * 2
    with native.using(isa):
        ours = attend(q, poison_past(cache, slots, lengths, NAN), slots, lengths, scale)
    operands = (q, poison_past(cache, slots, lengths, 0.0), slots, lengths, scale)
    exact, theirs, size = (of(*operands) for of in (attention64, attention32, attention_size))
    assert not ours[LENGTHS.index(0)].any()
    for token, length in enumerate(LENGTHS):
        one = slice(token, token + 1)
        assert_close(ours[one], exact[one], theirs[one], size[one], f"length {length}")


@every_cache
@native.every_set
@pytest.mark.parametrize(("heads", "head_dim"), [(2, 20), (1, 64)])
def test_long_contexts(isa: str, heads: int, head_dim: int, cache_dtype: torch.dtype) -> None:
    """The whole capacity, and lengths that differ much in one batch, one query twice."""
    slots, lengths = torch.tensor([2, 0, 1, 2]), torch.tensor([CAPACITY, 1, 2047, 700])
    cache = torch.randn(2, 3, heads, CAPACITY, head_dim).to(cache_dtype)
    q = torch.randn(4, heads, head_dim) * 3
    operands = (q, cache, slots, lengths, 0.3)
    with native.using(isa):
        ours = attend(*operands)
    assert_close(ours, attention64(*operands), attention32(*operands), attention_size(*operands))


@every_cache
@native.every_set
@pytest.mark.parametrize("tokens", [1, 2, 5, 16])
def test_a_token_attends_as_it_does_alone(isa: str, tokens: int, cache_dtype: torch.dtype) -> None:
    """Whatever the others' lengths, which decide how heads are shared out."""
    slots, lengths = torch.randperm(16)[:tokens], torch.randint(1, 60, (tokens,))
    lengths[-1] = 100
    cache = torch.randn(2, 16, 3, 100, 40).to(cache_dtype)
    q = torch.randn(tokens, 3, 40)
    with native.using(isa):
        together = attend(q, cache, slots, lengths, 0.2)
        for count in (2, 5):
            with native.threads(count):
                assert torch.equal(attend(q, cache, slots, lengths, 0.2), together)
        for token in range(tokens):
            one = slice(token, token + 1)
            alone = attend(q[one], cache, slots[one], lengths[one], 0.2)
            assert torch.equal(alone, together[one])


@every_cache
@native.every_set
@pytest.mark.parametrize("filler", [NAN, INFINITY, 1e4, -1e4])
def test_what_stands_past_the_length_does_not_matter(
    isa: str, filler: float, cache_dtype: torch.dtype
) -> None:
    slots, lengths = torch.tensor([3, 0, 4, 2, 1]), torch.tensor([0, 1, 16, 31, 39])
    cache = torch.randn(2, 6, 2, 40, 20).to(cache_dtype)
    q = torch.randn(5, 2, 20)
    with native.using(isa):
        clean = attend(q, cache, slots, lengths, 0.2)
        found = attend(q, poison_past(cache, slots, lengths, filler), slots, lengths, 0.2)
    assert torch.equal(found, clean)


@every_cache
@native.every_set
def test_a_token_whose_slot_is_minus_1_gets_zeros(isa: str, cache_dtype: torch.dtype) -> None:
    """Whatever its query and its length; the others are as without it."""
    slots, lengths = torch.tensor([-1, 1, -1, 0, -1]), torch.tensor([3, 40, -7, 17, 2**62])
    cache = torch.randn(2, 2, 3, 40, 20).to(cache_dtype)
    q = torch.randn(5, 3, 20)
    q[4] = NAN
    with native.using(isa):
        found = call.decode_attention(q, cache, slots, lengths, 40, 0.2)
        alone = attend(q[[1, 3]], cache, slots[[1, 3]], lengths[[1, 3]], 0.2)
        assert not call.decode_attention(q, cache, torch.full((5,), -1), lengths, 40, 0.2).any()
    assert torch.equal(found[[1, 3]], alone)
    assert not found[::2].any()


@native.every_set
def test_queries_in_bfloat16(isa: str) -> None:
    slots, lengths = torch.tensor([1, 0]), torch.tensor([40, 7])
    cache = torch.randn(2, 2, 3, 40, 24).bfloat16()
    q = torch.randn(2, 3, 24).bfloat16()
    operands = (q, cache, slots, lengths, 0.25)
    with native.using(isa):
        ours = attend(*operands)
    assert ours.dtype == torch.bfloat16
    assert_close(ours, attention64(*operands), attention32(*operands), attention_size(*operands))


@every_cache
@native.every_set
@pytest.mark.parametrize("size", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize("order", ["rising", "falling", "any"])
def test_large_scores(isa: str, order: str, size: float, cache_dtype: torch.dtype) -> None:
    """Scores of thousands apart: the running maximum moves at every block, at the first alone, or at some."""
    head_dim, length = 16, 100
    sizes = {
        "rising": torch.arange(length),
        "falling": -torch.arange(length),
        "any": torch.randn(length) * 30,
    }
    cache = torch.zeros(2, 1, 1, length, head_dim)
    cache[0, 0, 0, :, 0] = sizes[order] * size / 30
    cache[1] = torch.randn(1, 1, length, head_dim)
    cache = cache.to(cache_dtype)
    for sign in (1.0, -1.0):
        q = torch.zeros(1, 1, head_dim)
        q[0, 0, 0] = sign
        operands = (q, cache, torch.tensor([0]), torch.tensor([length]), 1.0)
        with native.using(isa):
            ours = attend(*operands)
        size = attention_size(*operands, exact_scores=True)
        assert_close(ours, attention64(*operands), attention32(*operands), size)


@native.every_set
@pytest.mark.parametrize("offset", [-2000.0, 3e4])
def test_scores_that_share_an_offset(isa: str, offset: float) -> None:
    """Softmax sees differences alone, exact here in float32: the result is that of the scores without it."""
    length = 37
    cache = torch.zeros(2, 1, 1, length, 8)
    cache[0, 0, 0, :, 0] = torch.arange(length) % 7
    cache[1] = torch.randn(1, 1, length, 8)
    q, slots, lengths = torch.zeros(1, 1, 8), torch.tensor([0]), torch.tensor([length])
    q[0, 0, :2] = 1.0
    with native.using(isa):
        without = attend(q, cache, slots, lengths, 1.0)
        cache[0, 0, 0, :, 1] = offset
        shifted = attend(q, cache, slots, lengths, 1.0)
    torch.testing.assert_close(shifted, without, atol=1e-6, rtol=0)


@every_cache
@native.every_set
@pytest.mark.parametrize("bad", [NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize("place", [0, 15, 16, 39])
@pytest.mark.parametrize("part", [0, 1], ids=["key", "value"])
def test_what_is_not_finite_shows(
    isa: str, part: int, place: int, bad: float, cache_dtype: torch.dtype
) -> None:
    """In a key that counts it makes its head's whole result NaN; in a value, that dimension alone."""
    cache = torch.randn(2, 2, 3, 40, 20).to(cache_dtype)
    q, slots, lengths = torch.rand(2, 3, 20) + 0.5, torch.tensor([1, 0]), torch.tensor([40, 40])
    with native.using(isa):
        clean = attend(q, cache, slots, lengths, 0.2).view(2, 3, 20)
        cache[part, 1, 2, place, 19] = bad
        found = attend(q, cache, slots, lengths, 0.2).view(2, 3, 20)
    spoilt = torch.zeros(2, 3, 20, dtype=torch.bool)
    spoilt[0, 2, slice(None) if part == 0 else 19] = True
    assert torch.equal(found[~spoilt], clean[~spoilt])
    if part == 0 or bad != bad:
        assert found[spoilt].isnan().all()
    else:
        assert not found[spoilt].isfinite().any()


def rotated64(x: Tensor, norms: tuple[Tensor, ...] | None, position: int, rotary_dim: int) -> Tensor:
    """As complex numbers: pair i of a head turns by position · θ^(−2i / rotary_dim)."""
    x = x.double() if norms is None else native.layernorm64(x, *norms)
    half = rotary_dim // 2
    pairs = torch.complex(x[..., :half], x[..., half:rotary_dim])
    angles = position * 10000.0 ** (-torch.arange(half).double() * 2 / max(rotary_dim, 1))
    pairs = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([pairs.real, pairs.imag, x[..., rotary_dim:]], -1)


@every_cache
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("normed", [True, False], ids=["with LayerNorm", "without"])
@native.every_set
def test_rotary_append(isa: str, normed: bool, share: float, cache_dtype: torch.dtype) -> None:
    for heads, head_dim in HEADS:
        rotary_dim = int(head_dim * share) // 2 * 2
        slots, positions = torch.tensor([2, 0, 2, 1]), torch.tensor([0, 5, 8, 19])
        qkv = torch.randn(4, 3 * heads * head_dim) * 2
        cos, sin = reference.rotary_table(rotary_dim, 10000.0, 25, torch.device("cpu"))
        norms = (*native.norm(head_dim), *native.norm(head_dim)) if normed else (None,) * 4
        cache = torch.full((2, 3, heads, 20, head_dim), -7.0, dtype=cache_dtype)
        by_torch = cache.clone()
        with native.using(isa):
            q = call.rotary_append(qkv, *norms, EPS, cos, sin, slots, positions, cache)
        theirs = reference.rotary_append(qkv, *norms, EPS, cos, sin, slots, positions, by_torch)
        parts = qkv.view(4, heads, 3, head_dim)
        untouched = torch.ones_like(cache, dtype=torch.bool)
        for token, (slot, position) in enumerate(zip(slots.tolist(), positions.tolist(), strict=True)):
            what = (heads, head_dim, position)
            q_norm, k_norm = (norms[:2], norms[2:]) if normed else (None, None)
            exact_q = rotated64(parts[token, :, 0], q_norm, position, rotary_dim)
            exact_k = rotated64(parts[token, :, 1], k_norm, position, rotary_dim)
            q_size, k_size = (
                rotary_size(parts[token, :, part], norm, EPS) for part, norm in ((0, q_norm), (1, k_norm))
            )
            k, k_of_torch = (each[0, slot, :, position] for each in (cache, by_torch))
            assert_close(q[token], exact_q, theirs[token], q_size, what)
            assert_close(k, exact_k, k_of_torch, k_size, what)
            assert torch.equal(cache[1, slot, :, position], parts[token, :, 2].to(cache_dtype)), what
            untouched[:, slot, :, position] = False
        assert (cache[untouched] == -7).all()


@every_cache
@native.every_set
def test_a_token_whose_slot_is_minus_1_is_not_written(isa: str, cache_dtype: torch.dtype) -> None:
    """Its q is 0, whatever its position; the others are as without it."""
    slots, positions = torch.tensor([-1, 2, -1, 0, -1]), torch.tensor([3, 5, -7, 0, 2**62])
    qkv, norms = torch.randn(5, 3 * 3 * 16), (*native.norm(16), *native.norm(16))
    qkv[4] = NAN
    cos, sin = reference.rotary_table(8, 10000.0, 6, torch.device("cpu"))
    cache = torch.full((2, 3, 3, 6, 16), -7.0, dtype=cache_dtype)
    alone = cache.clone()
    with native.using(isa):
        q = call.rotary_append(qkv, *norms, EPS, cos, sin, slots, positions, cache)
        live = qkv[[1, 3]], *norms, EPS, cos, sin, slots[[1, 3]], positions[[1, 3]]
        assert torch.equal(q[[1, 3]], call.rotary_append(*live, alone))
        assert native.same_bits(cache, alone)
        assert not q[::2].any()
        none = torch.full((5,), -1)
        assert not call.rotary_append(qkv, *norms, EPS, cos, sin, none, positions, cache).any()
    assert native.same_bits(cache, alone)


@native.every_set
@pytest.mark.parametrize("cache_dtype", [torch.float16, torch.bfloat16], ids=str)
def test_values_are_rounded_as_torch_rounds(isa: str, cache_dtype: torch.dtype) -> None:
    """To nearest, ties to even, subnormals and overflow too, a NaN stays one."""
    special = [0.0, -0.0, 65504.0, 65519.9, 65520.0, 1e30, INFINITY, -INFINITY, NAN, 6e-8, 2e-8, 3e-8, 1e-40]
    ties = [1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-8, 2**-24 * 1.5, 2**-24 * 0.5, 3.39e38, -1e-5]
    exponents = torch.randint(-30, 20, (3, 200)).float()
    values = torch.cat(
        [torch.tensor(special), torch.tensor(ties), (torch.randn(3, 200) * exponents.exp2())[0]]
    )
    head_dim = len(values)
    qkv = torch.cat([torch.zeros(2 * head_dim), values])[None]
    cache = torch.zeros(2, 1, 1, 1, head_dim, dtype=cache_dtype)
    zero, table = torch.tensor([0]), torch.ones(1, 1)
    with native.using(isa):
        call.rotary_append(qkv, None, None, None, None, EPS, table, table, zero, zero, cache)
    expected, found = values.to(cache_dtype), cache[1, 0, 0, 0]
    assert torch.equal(found.isnan(), expected.isnan())
    same = ~expected.isnan()
    assert native.same_bits(found[same], expected[same])


@native.every_set
def test_queries_come_back_in_the_dtype_of_qkv(isa: str) -> None:
    qkv = torch.randn(2, 3 * 2 * 16).bfloat16()
    cos, sin = reference.rotary_table(8, 10000.0, 8, torch.device("cpu"))
    caches = torch.zeros(2, 2, 3, 2, 8, 16)
    slots, positions = torch.tensor([0, 2]), torch.tensor([7, 0])
    arguments = (None, None, None, None, EPS, cos, sin, slots, positions)
    with native.using(isa):
        narrow = call.rotary_append(qkv, *arguments, caches[0])
        wide = call.rotary_append(qkv.float(), *arguments, caches[1])
    assert torch.equal(narrow, wide.bfloat16())
    assert torch.equal(caches[0], caches[1])

"""decode_attention in CUDA against float64, over head sizes, lengths and cache dtypes."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from closeness import assert_close, attention_size
from cuda_place import THIN, Place, every_place
from cuda_place import inputs_arrive as inputs_arrive
from torch import Tensor

from adept_fast.ops import reference

NAN, INFINITY = float("nan"), float("inf")
SPLIT = 256  # positions that one block takes
CACHES = [torch.float32, torch.float16, torch.bfloat16]
HEADS = [(1, 8), (3, 16), (2, 24), (2, 64), (1, 80), (1, 96), (1, 128), (1, 256)]  # heads, head_dim
LENGTHS = [0, 1, 2, 31, 32, 33, 64, 150]
LONG = [2050, 1, 2047, SPLIT, SPLIT + 1, 0, 700]
if THIN:
    HEADS, LENGTHS, LONG = [(2, 24), (1, 64)], [0, 1, 33], [SPLIT + 5, 1, SPLIT]

every_cache = pytest.mark.parametrize("cache_dtype", CACHES, ids=str)
every_head = pytest.mark.parametrize(("heads", "head_dim"), HEADS)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def attend(
    place: Place, q: Tensor, cache: Tensor, slots: Tensor, lengths: Tensor, scale: float, longest: int = -1
) -> Tensor:
    if longest < 0:
        longest = int(lengths.max())
    operands = [tensor.to(place.device) for tensor in (q, cache, slots, lengths)]
    return place.operators.decode_attention(*operands, longest, scale).cpu()


def attention64(q: Tensor, cache: Tensor, slots: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """[tokens, heads * head_dim], token by token."""
    rows = []
    for token, (slot, length) in enumerate(zip(slots.tolist(), lengths.tolist(), strict=True)):
        k, v = cache[:, slot, :, :length].double()  # [heads, length, head_dim]
        scores = (k @ q[token].double()[..., None])[..., 0] * scale  # [heads, length]
        rows.append((scores.softmax(-1)[:, None] @ v).flatten())
    return torch.stack(rows)


def attention_of_torch(q: Tensor, cache: Tensor, slots: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """As the definition computes on a GPU: products in the cache's dtype."""
    with mock.patch.object(reference, "_attention_dtype", lambda cache: cache.dtype):
        return reference.decode_attention(q.float(), cache, slots, lengths, int(lengths.max()), scale)


def poison_past(cache: Tensor, slots: Tensor, lengths: Tensor, filler: float) -> Tensor:
    """A copy with ``filler`` wherever no length reaches, in slots of no token too."""
    poisoned = torch.full_like(cache, filler)
    for slot, length in zip(slots.tolist(), lengths.tolist(), strict=True):
        poisoned[:, slot, :, :length] = cache[:, slot, :, :length]
    return poisoned


def assert_right(
    ours: Tensor, q: Tensor, cache: Tensor, slots: Tensor, lengths: Tensor, scale: float
) -> None:
    """Each token's result by itself; torch computes its own with zeros past the lengths."""
    exact = attention64(q, cache, slots, lengths, scale)
    # No product of torch's may let a NaN from there through, or it would be nothing to compare with.
    theirs = attention_of_torch(q, poison_past(cache, slots, lengths, 0.0), slots, lengths, scale)
    size = attention_size(q, cache, slots, lengths, scale)
    for token, length in enumerate(lengths.tolist()):
        one = slice(token, token + 1)
        assert_close(ours[one], exact[one], theirs[one], size[one], f"length {length}")


@every_cache
@every_head
@every_place
def test_decode_attention(place: Place, heads: int, head_dim: int, cache_dtype: torch.dtype) -> None:
    tokens, scale = len(LENGTHS), head_dim**-0.5
    slots, lengths = torch.randperm(tokens + 1)[:tokens], torch.tensor(LENGTHS)
    cache = torch.randn(2, tokens + 1, heads, max(LENGTHS) + 3, head_dim).to(cache_dtype)
    q = torch.randn(tokens, heads, head_dim) * 2
    ours = attend(place, q, poison_past(cache, slots, lengths, NAN), slots, lengths, scale)
    assert not ours[LENGTHS.index(0)].any()
    assert_right(ours, q, cache, slots, lengths, scale)


@every_cache
@pytest.mark.parametrize(("heads", "head_dim"), [(2, 24), (1, 64), (1, 256)])
@every_place
def test_long_contexts(place: Place, heads: int, head_dim: int, cache_dtype: torch.dtype) -> None:
    """Several splits: the whole capacity, ends of splits, and lengths that differ much in one batch."""
    slots, lengths = torch.randperm(len(LONG)), torch.tensor(LONG)
    cache = torch.randn(2, len(LONG), heads, max(LONG), head_dim).to(cache_dtype)
    q = torch.randn(len(LONG), heads, head_dim) * 3
    ours = attend(place, q, poison_past(cache, slots, lengths, NAN), slots, lengths, 0.3)
    assert_right(ours, q, cache, slots, lengths, 0.3)


@every_cache
@every_place
def test_a_token_attends_as_it_does_alone(place: Place, cache_dtype: torch.dtype) -> None:
    """Whatever the others' lengths and the bucket, which decide how many splits there are."""
    slots, lengths = torch.tensor([3, 0, 2, 3, 1]), torch.tensor([SPLIT + 9, 60, 2 * SPLIT, 17, 1])
    cache = torch.randn(2, 4, 2, 2 * SPLIT + 40, 40).to(cache_dtype)
    q = torch.randn(5, 2, 40)
    together = attend(place, q, cache, slots, lengths, 0.2)
    for token, length in enumerate(lengths.tolist()):
        one = slice(token, token + 1)
        for longest in (length, length + 7, cache.shape[3]):
            alone = attend(place, q[one], cache, slots[one], lengths[one], 0.2, longest)
            assert torch.equal(alone, together[one]), (length, longest)


@every_cache
@pytest.mark.parametrize("filler", [NAN, INFINITY, 1e4, -1e4])
@every_place
def test_what_stands_past_the_length_does_not_matter(
    place: Place, filler: float, cache_dtype: torch.dtype
) -> None:
    slots, lengths = torch.tensor([3, 0, 4, 2, 1]), torch.tensor([0, 1, 16, 31, SPLIT + 3])
    cache = torch.randn(2, 6, 2, SPLIT + 40, 16).to(cache_dtype)
    q = torch.randn(5, 2, 16)
    clean = attend(place, q, cache, slots, lengths, 0.2, SPLIT + 40)
    found = attend(place, q, poison_past(cache, slots, lengths, filler), slots, lengths, 0.2, SPLIT + 40)
    assert torch.equal(found, clean)


@pytest.mark.parametrize("longest", [40, SPLIT + 40])
@every_place
def test_what_does_not_exist_is_left_out(place: Place, longest: int) -> None:
    """Slots out of range give 0, as negative lengths do; a length counts up to ``longest``."""
    slots = torch.tensor([-1, 2, 2**40, 0, 1, 0])
    lengths = torch.tensor([5, 5, 5, -3, 2**40, longest + 1])
    cache = torch.randn(2, 2, 3, longest + 1, 16).half()
    q = torch.randn(6, 3, 16)
    found = attend(place, q, cache, slots, lengths, 0.2, longest)
    assert not found[:4].any()
    clamped = torch.tensor([longest, longest])
    assert torch.equal(found[4:], attend(place, q[4:], cache, slots[4:], clamped, 0.2))


@every_cache
@every_place
def test_the_same_bits_in_any_order(place: Place, cache_dtype: torch.dtype) -> None:
    slots, lengths = torch.tensor([1, 0]), torch.tensor([SPLIT + 50, 70])
    cache = torch.randn(2, 2, 2, SPLIT + 50, 64).to(cache_dtype)
    q = torch.randn(2, 2, 64)
    first = attend(place, q, cache, slots, lengths, 0.1)
    for order in place.orders:
        with place.order(order):
            assert torch.equal(attend(place, q, cache, slots, lengths, 0.1), first)


@every_cache
@pytest.mark.parametrize("size", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize("sort", ["rising", "falling", "any"])
@every_place
def test_large_scores(place: Place, sort: str, size: float, cache_dtype: torch.dtype) -> None:
    """Scores of thousands apart: the running maximum moves at every step, at the first alone, or at some."""
    head_dim, length = 16, SPLIT + 100
    sizes = {
        "rising": torch.arange(length),
        "falling": -torch.arange(length),
        "any": torch.randn(length) * 30,
    }
    cache = torch.zeros(2, 1, 1, length, head_dim)
    cache[0, 0, 0, :, 0] = sizes[sort] * size / 30
    cache[1] = torch.randn(1, 1, length, head_dim)
    cache = cache.to(cache_dtype)
    for sign in (1.0, -1.0):
        q = torch.zeros(1, 1, head_dim)
        q[0, 0, 0] = sign
        operands = (q, cache, torch.tensor([0]), torch.tensor([length]), 1.0)
        size = attention_size(*operands, exact_scores=True)
        assert_close(attend(place, *operands), attention64(*operands), attention_of_torch(*operands), size)


@pytest.mark.parametrize("offset", [-2000.0, 3e4])
@every_place
def test_scores_that_share_an_offset(place: Place, offset: float) -> None:
    """Softmax sees differences alone, exact here in float32: the result is that of the scores without it."""
    length = 37
    cache = torch.zeros(2, 1, 1, length, 8)
    cache[0, 0, 0, :, 0] = torch.arange(length) % 7
    cache[1] = torch.randn(1, 1, length, 8)
    q, slots, lengths = torch.zeros(1, 1, 8), torch.tensor([0]), torch.tensor([length])
    q[0, 0, :2] = 1.0
    without = attend(place, q, cache, slots, lengths, 1.0)
    cache[0, 0, 0, :, 1] = offset
    torch.testing.assert_close(attend(place, q, cache, slots, lengths, 1.0), without, atol=1e-6, rtol=0)


@every_cache
@pytest.mark.parametrize("bad", [NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize("at", [0, 15, SPLIT, SPLIT + 39])
@pytest.mark.parametrize("part", [0, 1], ids=["key", "value"])
@every_place
def test_what_is_not_finite_shows(
    place: Place, part: int, at: int, bad: float, cache_dtype: torch.dtype
) -> None:
    """In a key that counts it makes its head's whole result NaN; in a value, that dimension alone."""
    length = SPLIT + 40
    cache = torch.randn(2, 2, 2, length, 16).to(cache_dtype)
    q, slots, lengths = torch.rand(2, 2, 16) + 0.5, torch.tensor([1, 0]), torch.tensor([length, length])
    clean = attend(place, q, cache, slots, lengths, 0.2).view(2, 2, 16)
    cache[part, 1, 1, at, 15] = bad
    found = attend(place, q, cache, slots, lengths, 0.2).view(2, 2, 16)
    spoilt = torch.zeros(2, 2, 16, dtype=torch.bool)
    spoilt[0, 1, slice(None) if part == 0 else 15] = True
    assert torch.equal(found[~spoilt], clean[~spoilt])
    if part == 0 or bad != bad:
        assert found[spoilt].isnan().all()
    else:
        assert not found[spoilt].isfinite().any()


@every_place
def test_nothing_to_attend(place: Place) -> None:
    cache, none, zero = torch.zeros(2, 2, 2, 8, 16), torch.zeros(0).long(), torch.tensor([0])
    assert attend(place, torch.zeros(0, 2, 16), cache, none, none, 1.0, 8).shape == (0, 32)
    assert not attend(place, torch.ones(1, 2, 16), cache, zero, zero, 1.0, 0).any()


@every_place
def test_queries_in_bfloat16(place: Place) -> None:
    slots, lengths = torch.tensor([1, 0]), torch.tensor([40, 7])
    cache, q = torch.randn(2, 2, 3, 40, 24).bfloat16(), torch.randn(2, 3, 24).bfloat16()
    ours = attend(place, q, cache, slots, lengths, 0.25)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, attend(place, q.float(), cache, slots, lengths, 0.25).bfloat16())


@pytest.mark.parametrize("head_dim", [20, 264])
@every_place
def test_heads_that_no_load_of_16_bytes_fits_are_refused(place: Place, head_dim: int) -> None:
    zero = torch.tensor([0])
    with pytest.raises(RuntimeError, match="decode_attention: "):
        attend(place, torch.zeros(1, 1, head_dim), torch.zeros(2, 1, 1, 4, head_dim), zero, zero, 1.0, 4)


@every_place
def test_a_cache_that_begins_anywhere_is_refused(place: Place) -> None:
    zero = torch.tensor([0], device=place.device)
    cache = torch.zeros(2 * 4 * 8 + 1, device=place.device)[1:].view(2, 1, 1, 4, 8)
    with pytest.raises(RuntimeError, match="decode_attention: "):
        place.operators.decode_attention(torch.zeros(1, 1, 8, device=place.device), cache, zero, zero, 4, 1.0)

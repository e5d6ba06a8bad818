"""decode_attention against float64, over head sizes, lengths and cache dtypes."""

from __future__ import annotations

from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from backends import CUDA, FLOATS, KERNELS, THIN, Backend, every_backend, on
from closeness import assert_close, attention_size
from torch import Tensor

from adept_fast.ops import reference

NAN, INFINITY = float("nan"), float("inf")
SPLIT = 256  # positions that one block of a GPU takes
HEADS = [(1, 8), (3, 16), (2, 24), (1, 64), (3, 80), (2, 96), (1, 128), (1, 256), (32, 64)]  # heads, head_dim
LENGTHS = [0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 150]
LONG = [2050, 1, 2047, SPLIT, SPLIT + 1, 0, 700]
if THIN:
    HEADS, LENGTHS, LONG = [(2, 24), (1, 64)], [0, 1, 15, 17, 33, 65], [SPLIT + 5, 1, SPLIT]

every_cache = pytest.mark.parametrize("cache_dtype", FLOATS.values(), ids=FLOATS)


def attend(
    backend: Backend,
    q: Tensor,
    cache: Tensor,
    slots: Tensor,
    lengths: Tensor,
    scale: float,
    longest: int = -1,
) -> Tensor:
    """``longest`` is by default the largest of the lengths."""
    longest = int(lengths.max()) if longest < 0 else longest
    attended: Tensor = backend.run(
        "decode_attention", q=q, cache_layer=cache, slots=slots, lengths=lengths, longest=longest, scale=scale
    )
    return attended


def attention64(q: Tensor, cache: Tensor, slots: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """[tokens, heads * head_dim], token by token."""
    rows = []
    for token, (slot, length) in enumerate(zip(slots.tolist(), lengths.tolist(), strict=True)):
        k, v = cache[:, slot, :, :length].double()  # [heads, length, head_dim]
        scores = (k @ q[token].double()[..., None])[..., 0] * scale  # [heads, length]
        rows.append((scores.softmax(-1)[:, None] @ v).flatten())
    return torch.stack(rows)


def attention_of_torch(
    backend: Backend, q: Tensor, cache: Tensor, slots: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    """As the definition computes: on a GPU, products are in the cache's dtype."""
    # No product of torch's may let a NaN from there through, or it would be nothing to compare with.
    cache = poison_past(cache, slots, lengths, 0.0)
    rule = mock.patch.object(reference, "_attention_dtype", lambda cache: cache.dtype)
    with rule if backend.family == "cuda" else nullcontext():
        attended = reference.decode_attention(q.float(), cache, slots, lengths, int(lengths.max()), scale)
    return attended.to(q.dtype)


def poison_past(cache: Tensor, slots: Tensor, lengths: Tensor, filler: float) -> Tensor:
    """A copy with ``filler`` wherever no length reaches, in slots of no token too."""
    poisoned = torch.full_like(cache, filler)
    for slot, length in zip(slots.tolist(), lengths.tolist(), strict=True):
        poisoned[:, slot, :, :length] = cache[:, slot, :, :length]
    return poisoned


def check(backend: Backend, q: Tensor, cache: Tensor, slots: Tensor, lengths: Tensor, scale: float) -> None:
    """Each token's result by itself, with NaN past the lengths."""
    operands = (q, cache, slots, lengths, scale)
    ours = attend(backend, q, poison_past(cache, slots, lengths, NAN), slots, lengths, scale)
    assert ours.dtype == q.dtype
    exact, theirs = attention64(*operands), attention_of_torch(backend, *operands)
    size = attention_size(*operands)
    for token, length in enumerate(lengths.tolist()):
        one, what = (
            slice(token, token + 1),
            f"decode_attention on {backend}, {list(q.shape)}, length {length}",
        )
        assert_close(ours[one], exact[one], theirs[one], size[one], what)
        assert length or not ours[one].any(), what


@every_cache
@pytest.mark.parametrize(("heads", "head_dim"), HEADS)
@every_backend
def test_decode_attention(backend: Backend, heads: int, head_dim: int, cache_dtype: torch.dtype) -> None:
    tokens = len(LENGTHS)
    slots, lengths = torch.randperm(tokens + 1)[:tokens], torch.tensor(LENGTHS)
    cache = torch.randn(2, tokens + 1, heads, max(LENGTHS) + 3, head_dim).to(cache_dtype)
    check(backend, torch.randn(tokens, heads, head_dim) * 2, cache, slots, lengths, head_dim**-0.5)


@every_cache
@pytest.mark.parametrize(("heads", "head_dim"), [(3, 20)])
@on([one for one in KERNELS if one not in CUDA])
def test_heads_of_any_size(backend: Backend, heads: int, head_dim: int, cache_dtype: torch.dtype) -> None:
    test_decode_attention(backend, heads, head_dim, cache_dtype)


@every_cache
@pytest.mark.parametrize(("heads", "head_dim"), [(2, 24), (1, 64), (1, 256)])
@on(KERNELS)
def test_long_contexts(backend: Backend, heads: int, head_dim: int, cache_dtype: torch.dtype) -> None:
    """Several splits: the whole capacity, ends of splits, lengths that differ much, one slot twice."""
    slots, lengths = torch.randperm(len(LONG)), torch.tensor(LONG)
    slots[-1] = slots[0]
    cache = torch.randn(2, len(LONG), heads, max(LONG), head_dim).to(cache_dtype)
    check(backend, torch.randn(len(LONG), heads, head_dim) * 3, cache, slots, lengths, 0.3)


@every_cache
@on(KERNELS)
def test_a_token_attends_as_it_does_alone(backend: Backend, cache_dtype: torch.dtype) -> None:
    """Whatever the others' lengths, the bucket and the schedule, which decide how work is shared out."""
    slots, lengths = torch.tensor([3, 0, 2, 3, 1]), torch.tensor([SPLIT + 9, 60, 2 * SPLIT, 17, 1])
    cache = torch.randn(2, 4, 3, 2 * SPLIT + 40, 40).to(cache_dtype)
    q = torch.randn(5, 3, 40)
    together = attend(backend, q, cache, slots, lengths, 0.2)
    for schedule in backend.schedules():
        with schedule:
            assert torch.equal(attend(backend, q, cache, slots, lengths, 0.2), together)
    for token, length in enumerate(lengths.tolist()):
        one = slice(token, token + 1)
        for longest in (length, length + 7, cache.shape[3]):
            alone = attend(backend, q[one], cache, slots[one], lengths[one], 0.2, longest)
            assert torch.equal(alone, together[one]), (length, longest)


@every_cache
@pytest.mark.parametrize("filler", [NAN, INFINITY, 1e4, -1e4])
@every_backend
def test_what_stands_past_the_length_does_not_matter(
    backend: Backend, filler: float, cache_dtype: torch.dtype
) -> None:
    slots, lengths = torch.tensor([3, 0, 4, 2, 1]), torch.tensor([0, 1, 16, 31, SPLIT + 3])
    cache = torch.randn(2, 6, 2, SPLIT + 40, 16).to(cache_dtype)
    q = torch.randn(5, 2, 16)
    clean = attend(backend, q, cache, slots, lengths, 0.2, SPLIT + 40)
    poisoned = poison_past(cache, slots, lengths, filler)
    assert torch.equal(attend(backend, q, poisoned, slots, lengths, 0.2, SPLIT + 40), clean)


@every_cache
@every_backend
def test_a_token_whose_slot_is_minus_1_gets_zeros(backend: Backend, cache_dtype: torch.dtype) -> None:
    """Whatever its query and its length; the others are as without it."""
    slots, lengths = torch.tensor([-1, 1, -1, 0, -1]), torch.tensor([3, 40, -7, 17, 2**62])
    cache = torch.randn(2, 2, 3, 40, 24).to(cache_dtype)
    q = torch.randn(5, 3, 24)
    q[4] = NAN
    found = attend(backend, q, cache, slots, lengths, 0.2, 40)
    alone = attend(backend, q[[1, 3]], cache, slots[[1, 3]], lengths[[1, 3]], 0.2)
    assert not attend(backend, q, cache, torch.full((5,), -1), lengths, 0.2, 40).any()
    torch.testing.assert_close(found[[1, 3]], alone, rtol=0, atol=1e-6 if backend.kind == "reference" else 0)
    assert not found[::2].any()


@pytest.mark.parametrize("longest", [40, SPLIT + 40])
@on(CUDA)
def test_what_does_not_exist_is_left_out(backend: Backend, longest: int) -> None:
    """Slots out of range give 0, as negative lengths do; a length counts up to ``longest``."""
    slots = torch.tensor([-1, 2, 2**40, -(2**63), 0, 1, 0, 1])
    lengths = torch.tensor([5, 5, 5, 5, -3, 2**40, longest + 1, 2**63 - 1])
    cache = torch.randn(2, 2, 3, longest + 1, 16).half()
    q = torch.randn(8, 3, 16)
    found = attend(backend, q, cache, slots, lengths, 0.2, longest)
    assert not found[:5].any()
    clamped = torch.full((3,), longest)
    assert torch.equal(found[5:], attend(backend, q[5:], cache, slots[5:], clamped, 0.2))


@every_backend
def test_queries_in_bfloat16(backend: Backend) -> None:
    slots, lengths = torch.tensor([1, 0]), torch.tensor([40, 7])
    cache, q = torch.randn(2, 2, 3, 40, 24).bfloat16(), torch.randn(2, 3, 24).bfloat16()
    if backend.kind == "reference":
        return
    check(backend, q, cache, slots, lengths, 0.25)
    wide = attend(backend, q.float(), cache, slots, lengths, 0.25)
    assert torch.equal(attend(backend, q, cache, slots, lengths, 0.25), wide.bfloat16())


@every_cache
@pytest.mark.parametrize("size", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize("order", ["rising", "falling", "any"])
@on(KERNELS)
def test_large_scores(backend: Backend, order: str, size: float, cache_dtype: torch.dtype) -> None:
    """Scores of thousands apart: the running maximum moves at every block, at the first alone, or at some."""
    head_dim, length = 16, SPLIT + 100
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
        bound = attention_size(*operands, exact_scores=True)
        theirs = attention_of_torch(backend, *operands)
        assert_close(attend(backend, *operands), attention64(*operands), theirs, bound, f"{backend}, {order}")


@pytest.mark.parametrize("offset", [-2000.0, 3e4])
@on(KERNELS)
def test_scores_that_share_an_offset(backend: Backend, offset: float) -> None:
    """Softmax sees differences alone, exact here in float32: the result is that of the scores without it."""
    length = 37
    cache = torch.zeros(2, 1, 1, length, 8)
    cache[0, 0, 0, :, 0] = torch.arange(length) % 7
    cache[1] = torch.randn(1, 1, length, 8)
    q, slots, lengths = torch.zeros(1, 1, 8), torch.tensor([0]), torch.tensor([length])
    q[0, 0, :2] = 1.0
    without = attend(backend, q, cache, slots, lengths, 1.0)
    cache[0, 0, 0, :, 1] = offset
    shifted = attend(backend, q, cache, slots, lengths, 1.0)
    torch.testing.assert_close(shifted, without, atol=1e-6, rtol=0)


@every_cache
@pytest.mark.parametrize("bad", [NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize("part", [0, 1], ids=["key", "value"])
@on(KERNELS)
def test_what_is_not_finite_shows(backend: Backend, part: int, bad: float, cache_dtype: torch.dtype) -> None:
    """In a key that counts it makes its head's whole result NaN; in a value, that dimension alone."""
    length = SPLIT + 40
    cache = torch.randn(2, 2, 2, length, 16).to(cache_dtype)
    q, slots, lengths = torch.rand(2, 2, 16) + 0.5, torch.tensor([1, 0]), torch.tensor([length, length])
    clean = attend(backend, q, cache, slots, lengths, 0.2).view(2, 2, 16)
    spoilt = torch.zeros(2, 2, 16, dtype=torch.bool)
    spoilt[0, 1, slice(None) if part == 0 else 15] = True
    for position in (0, 15, 16, SPLIT, length - 1):
        poisoned = cache.clone()
        poisoned[part, 1, 1, position, 15] = bad
        found = attend(backend, q, poisoned, slots, lengths, 0.2).view(2, 2, 16)
        assert torch.equal(found[~spoilt], clean[~spoilt]), position
        if part == 0 or bad != bad:
            assert found[spoilt].isnan().all(), position
        else:
            assert not found[spoilt].isfinite().any(), position


@on(KERNELS)
def test_nothing_to_attend(backend: Backend) -> None:
    cache, none, zero = torch.zeros(2, 2, 2, 8, 16), torch.zeros(0).long(), torch.tensor([0])
    assert attend(backend, torch.zeros(0, 2, 16), cache, none, none, 1.0, 8).shape == (0, 32)
    assert not attend(backend, torch.ones(1, 2, 16), cache, zero, zero, 1.0, 0).any()

"""prefill_attention against float64, and that a query has the same bits however its prompt is cut."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from backends import CPU, CUDA, THIN, Backend, on, same_bits, threads
from closeness import assert_close, attention_size
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adept_fast.ops import kernels, reference

NAN, INFINITY = float("nan"), float("inf")
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
# heads, head_dim, start, tokens: tiles have 128 queries, and 64 or 32 positions.
SIZES = [
    (1, 64, 0, 1),
    (2, 64, 0, 130),
    (1, 64, 63, 2),
    (3, 64, 128, 64),
    (1, 64, 500, 77),
    (1, 64, 0, 256),
    (2, 8, 15, 17),
    (1, 40, 100, 33),
    (2, 80, 5, 60),
    (1, 128, 190, 70),
    (2, 256, 31, 34),
    (1, 200, 0, 97),
]
if THIN:
    SIZES = [(2, 64, 60, 70), (1, 40, 100, 33), (1, 128, 30, 35), (1, 256, 31, 34)]

every_half = pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)


def attend(backend: Backend, q: Tensor, cache: Tensor, start: int, scale: float, slot: int = 1) -> Tensor:
    """Of a CPU, by what takes the operator's place there."""
    if backend.kind == "cpu":
        return kernels.prefill_attention(q, cache, slot, start, scale)
    found: Tensor = backend.run(
        "prefill_attention", q=q, cache_layer=cache, slot=slot, start=start, scale=scale
    )
    return found


def random_cache(heads: int, capacity: int, head_dim: int, dtype: torch.dtype, filler: float) -> Tensor:
    """Of three slots, the outer ones of which hold ``filler``."""
    cache = torch.randn(2, 3, heads, capacity, head_dim).to(dtype)
    cache[:, ::2] = filler
    return cache


def attention64(q: Tensor, cache: Tensor, start: int, scale: float) -> Tensor:
    """[tokens, heads * head_dim], of slot 1."""
    k, v = cache[:, 1].double()  # each [heads, capacity, head_dim]
    rows = []
    for token, query in enumerate(q.double()):
        end = start + token + 1
        weights = ((k[:, :end] @ query[..., None])[..., 0] * scale).softmax(-1)  # [heads, end]
        rows.append((weights[:, None] @ v[:, :end]).flatten())
    return torch.stack(rows)


def attention_of_torch(q: Tensor, cache: Tensor, start: int, scale: float) -> Tensor:
    """As torch computes it in the dtype of the cache, from queries that are scaled before rounding."""
    with mock.patch.object(reference, "_attention_dtype", lambda cache: cache.dtype):
        return reference.prefill_attention(q * scale, cache, 1, start, 1.0)


def check(backend: Backend, q: Tensor, cache: Tensor, start: int, scale: float) -> None:
    """With NaN past the last token."""
    end = start + len(q)
    poisoned = cache.clone()
    poisoned[:, :, :, end:] = NAN
    slots, lengths = torch.ones(len(q), dtype=torch.int64), torch.arange(start + 1, end + 1)
    assert_close(
        attend(backend, q, poisoned, start, scale),
        attention64(q, cache, start, scale),
        attention_of_torch(q, cache, start, scale),
        attention_size(q, cache, slots, lengths, scale),
        f"{backend}, {list(q.shape)} from {start}",
        inputs=cache.dtype,
    )


@every_half
@pytest.mark.parametrize(("heads", "head_dim", "start", "tokens"), SIZES)
@on([*CPU, *CUDA])
def test_prefill_attention(
    backend: Backend, heads: int, head_dim: int, start: int, tokens: int, dtype: torch.dtype
) -> None:
    cache = random_cache(heads, start + tokens + 5, head_dim, dtype, NAN)
    check(backend, torch.randn(tokens, heads, head_dim) * 2, cache, start, head_dim**-0.5)


@every_half
@pytest.mark.parametrize("size", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize("order", ["rising", "falling", "any"])
@on(CUDA)
def test_large_scores(backend: Backend, order: str, size: float, dtype: torch.dtype) -> None:
    """The maximum moves at every position, at the first alone, or at some; scores are exact."""
    length = 150
    steps = {
        "rising": torch.arange(length),
        "falling": -torch.arange(length),
        "any": torch.randn(length) * 30,
    }
    cache = random_cache(1, length, 16, dtype, 0.0)
    cache[0, 1] = 0
    cache[0, 1, 0, :, 0] = (steps[order] * size / 30).to(dtype)
    q = torch.zeros(length, 1, 16)
    q[:, 0, 0] = 1
    exact, theirs = attention64(q, cache, 0, 1.0), attention_of_torch(q, cache, 0, 1.0)
    bound = cache[1, 1].double().abs().max() * 2
    assert_close(attend(backend, q, cache, 0, 1.0), exact, theirs, bound, f"{backend}, {order}", inputs=dtype)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("dtype", [*HALVES.values(), torch.float32], ids=str)
@on([*CPU, *CUDA])
def test_chunks_and_company_change_no_bit(backend: Backend, dtype: torch.dtype, head_dim: int) -> None:
    """However a prompt is cut, whatever comes after the chunk, and wherever the sequence is."""
    if backend.family == "cuda" and dtype == torch.float32:
        return  # the kernel of decode steps takes those caches
    tokens, heads = 200, 2
    cache = random_cache(heads, tokens + 3, head_dim, dtype, NAN)
    q = torch.randn(tokens, heads, head_dim) * 2
    whole = attend(backend, q, cache, 0, 0.125)

    @settings(max_examples=4 if THIN else 12, deadline=None)
    @given(
        st.lists(st.integers(1, tokens - 1), max_size=8).map(lambda cuts: sorted({0, *cuts, tokens})),
        st.sampled_from([0.0, NAN, INFINITY, 6e4]),
        st.sampled_from([1, 3]),
    )
    def holds(cuts: list[int], filler: float, thread_count: int) -> None:
        with threads(thread_count if backend.kind == "cpu" else 1):
            for start, end in zip(cuts, cuts[1:], strict=False):
                now = cache.clone()
                now[:, :, :, end:] = filler
                now[:, [1, 2]] = now[:, [2, 1]]
                found = attend(backend, q[start:end], now, start, 0.125, slot=2)
                assert same_bits(found, whole[start:end]), (start, end)

    holds()
    for schedule in backend.schedules():
        with schedule:
            assert same_bits(attend(backend, q, cache, 0, 0.125), whole)


@every_half
@pytest.mark.parametrize("filler", [NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize("part", [0, 1], ids=["key", "value"])
@on(CUDA)
def test_what_is_not_finite_shows_in_later_queries_alone(
    backend: Backend, part: int, filler: float, dtype: torch.dtype
) -> None:
    """Also in a tile of positions that earlier queries share."""
    tokens = 140
    cache = random_cache(2, tokens, 64, dtype, NAN)
    q = torch.rand(tokens, 2, 64) + 0.5
    clean = attend(backend, q, cache, 0, 0.125).view(tokens, 2, 64)
    for position in (0, 1, 15, 16, 63, 64, 100, tokens - 1):
        poisoned = cache.clone()
        poisoned[part, 1, 1, position, 5] = filler
        found = attend(backend, q, poisoned, 0, 0.125).view(tokens, 2, 64)
        assert same_bits(found[:position], clean[:position]), position
        assert same_bits(found[:, 0], clean[:, 0]), position
        if part == 1:
            assert not found[position:, 1, 5].isfinite().any(), position
            assert same_bits(found[:, 1, 6:], clean[:, 1, 6:])
        elif filler != -INFINITY:  # which is a score without weight
            assert not found[position:, 1].isfinite().any(), position


@every_half
@on(CUDA)
def test_a_large_query_is_scaled_before_it_is_rounded(backend: Backend, dtype: torch.dtype) -> None:
    cache = random_cache(1, 20, 64, dtype, NAN) / 64
    q = torch.randn(20, 1, 64) * 1e5
    check(backend, q, cache, 0, 1e-4)


@on(CUDA)
def test_queries_in_bfloat16_and_no_queries(backend: Backend) -> None:
    cache, q = random_cache(2, 40, 64, torch.float16, NAN), torch.randn(20, 2, 64).bfloat16()
    wide = attend(backend, q.float(), cache, 20, 0.125)
    assert same_bits(attend(backend, q, cache, 20, 0.125), wide.bfloat16())
    assert attend(backend, q[:0].float(), cache, 40, 0.125).shape == (0, 128)

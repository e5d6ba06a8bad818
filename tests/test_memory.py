"""The memory plan: sizes that are really taken, and refusals that say what fits."""

from __future__ import annotations

import pytest
import torch

from adept_fast import InsufficientMemoryError, PersimmonConfig, Runtime
from adept_fast.kv_cache import StaticKVCache, bytes_per_token
from adept_fast.memory import format_bytes, plan_memory

PERSIMMON_8B = PersimmonConfig(rope_theta=25000.0)
CPU = torch.device("cpu")


def plan(available: int, **keywords: object):  # type: ignore[no-untyped-def]
    weights = 18_840_000_000
    return plan_memory(PERSIMMON_8B, weights_bytes=weights, device=CPU, available=available, **keywords)


def test_the_8b_caches_590_kilobytes_a_token() -> None:
    assert bytes_per_token(PERSIMMON_8B) == 36 * 2 * 4096 * 2 == 589_824
    assert PERSIMMON_8B.num_parameters == pytest.approx(9.4e9, rel=0.01)


def test_the_longest_context_is_what_the_rest_holds() -> None:
    assert plan(80_000_000_000).max_seq_len == 16384
    assert plan(80_000_000_000).longest_context == 16384
    small = plan(24_000_000_000)
    room = 24_000_000_000 - small.weights_bytes - small.workspace_bytes
    assert small.longest_context == room // 589_824
    assert small.max_seq_len == small.longest_context // 64 * 64
    assert small.total_bytes <= 24_000_000_000
    assert plan(24_000_000_000, max_batch_size=4).longest_context == room // (4 * 589_824)


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    longest = plan(24_000_000_000).longest_context
    assert plan(24_000_000_000, max_seq_len=longest).max_seq_len == longest
    with pytest.raises(
        InsufficientMemoryError, match=f"cpu has 24 GB free; .*max_seq_len up to {longest} fits"
    ):
        plan(24_000_000_000, max_seq_len=longest + 1)
    with pytest.raises(InsufficientMemoryError, match="no context fits"):
        plan(18_000_000_000)


def test_the_plan_is_what_the_runtime_takes(demo: Runtime) -> None:
    memory = demo.memory()
    weights = demo._model.weights
    tensors = {id(weights.embedding): weights.embedding, id(weights.lm_head): weights.lm_head}
    assert memory.weights_bytes == (
        weights.bytes_per_step(demo.config.vocab_size)
        - weights.lm_head.nbytes
        + sum(tensor.nbytes for tensor in tensors.values())
    )
    assert memory.cache_bytes == demo._cache.data.nbytes
    assert demo.bytes_read_per_step(10) - demo.bytes_read_per_step(0) == 10 * memory.cache_bytes_per_token


def test_the_cache_is_one_allocation_of_the_stated_layout() -> None:
    config = PersimmonConfig(hidden_size=160, num_attention_heads=2, num_hidden_layers=3)
    cache = StaticKVCache(config, max_batch_size=4, max_seq_len=7)
    assert cache.data.shape == (3, 2, 4, 2, 7, 80)
    assert cache.data.dtype == torch.float16
    assert cache.layer(1).data_ptr() == cache.data[1].data_ptr()
    assert cache.data.nbytes == bytes_per_token(config) * 7 * 4


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (589_824, "590 kB"),
        (16_640_000_000, "16.6 GB"),
        (3e12, "3 TB"),
    ],
)
def test_bytes_are_written_in_decimal_units(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_room_for_unpacking_weights_comes_off_the_context() -> None:
    plain = plan_memory(PERSIMMON_8B, weights_bytes=10**10, device=CPU, available=18 * 10**9)
    unpacking = plan_memory(
        PERSIMMON_8B, weights_bytes=10**10, device=CPU, available=18 * 10**9, unpacking_bytes=10**9
    )
    assert unpacking.workspace_bytes - plain.workspace_bytes == 10**9
    lost = 10**9 / plain.cache_bytes_per_token
    assert plain.longest_context - unpacking.longest_context in (int(lost), int(lost) + 1)

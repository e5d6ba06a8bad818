"""Exchanges between ranks: in shared memory and by process groups, against numpy and float64."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_threads import on_ranks
from torch import Tensor, distributed

from adept_fast.ops.process_group import GroupRanks
from adept_fast.ops.ranks import ONE_RANK, Ranks
from adept_fast.ops.shared_memory import PIECE_BYTES

gloo: Any = distributed


def by_gloo(count: int, work: Callable[[Ranks], Any]) -> list[Any]:
    """``on_ranks`` with a process group, as NCCL's is one: each rank is a thread."""
    store, results = gloo.HashStore(), {}

    def run(rank: int) -> None:
        group = gloo.ProcessGroupGloo(
            gloo.PrefixStore("test", store), rank, count, timeout=gloo.default_pg_timeout
        )
        results[rank] = work(GroupRanks(group))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rank] for rank in range(count)]


WAYS = pytest.mark.parametrize("way", [on_ranks, by_gloo], ids=["shared memory", "process group"])


def terms(count: int, *shape: int, seed: int = 0) -> list[Tensor]:
    """Numbers of very different sizes, so that another order gives another sum."""
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.randint(-12, 12, (count, *shape), generator=generator)
    return list(torch.ldexp(torch.randn((count, *shape), generator=generator), exponents))


def in_order(parts: list[Tensor]) -> Tensor:
    total = np.zeros(parts[0].shape, dtype=np.float32)
    for part in parts:
        total = total + part.numpy()
    return torch.from_numpy(total)


@WAYS
@pytest.mark.parametrize("count", [2, 3, 4])
def test_sums_are_in_the_order_of_ranks(way: Callable[..., list[Tensor]], count: int) -> None:
    parts = terms(count, 5, 77)
    assert not torch.equal(in_order(parts), in_order(parts[::-1])) or count == 2
    for total in way(count, lambda ranks: ranks.sum(parts[ranks.rank])):
        assert torch.equal(total, in_order(parts))


def test_large_sums_take_several_pieces() -> None:
    parts = terms(3, PIECE_BYTES // 4 * 2 + 13)
    for total in on_ranks(3, lambda ranks: ranks.sum(parts[ranks.rank])):
        assert torch.equal(total, in_order(parts))


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(2, 4),
    calls=st.lists(
        st.tuples(
            st.sampled_from(["sum", "largest", "shared", "gathered"]), st.integers(0, 9), st.integers(1, 40)
        ),
        max_size=12,
    ),
)
def test_any_sequence_of_exchanges(count: int, calls: list[tuple[str, int, int]]) -> None:
    """No call sees what another one left, whatever their sizes are."""

    def expected(at: int, name: str, rank: int) -> Tensor:
        rows, columns = calls[at][1:]
        parts = terms(count, rows, columns, seed=at)
        if name == "sum":
            return in_order(parts)
        if name == "largest":
            return torch.from_numpy(np.max([part.numpy() for part in parts], axis=0))
        if name == "shared":
            return parts[0]
        widths = [(columns + other) % 7 for other in range(count)]
        own = [part[:, : min(width, columns)] for part, width in zip(parts, widths, strict=True)]
        return torch.cat(own, dim=1) if rank == 0 else own[rank]

    def work(ranks: Ranks) -> list[Tensor]:
        found = []
        for at, (name, rows, columns) in enumerate(calls):
            x = terms(count, rows, columns, seed=at)[ranks.rank]
            if name == "gathered":
                widths = [min((columns + other) % 7, columns) for other in range(count)]
                found.append(ranks.gathered(x[:, : widths[ranks.rank]], widths))
            else:
                found.append(getattr(ranks, name)(x))
        return found

    for rank, results in enumerate(on_ranks(count, work)):
        for at, result in enumerate(results):
            assert torch.equal(result, expected(at, calls[at][0], rank)), (rank, calls[at])


@WAYS
def test_numbers_that_ranks_tell(way: Callable[..., list[list[int]]]) -> None:
    told = way(3, lambda ranks: ranks.told(10**12 + ranks.rank, torch.device("cpu")))
    assert told == [[10**12, 10**12 + 1, 10**12 + 2]] * 3


def test_the_largest_is_nan_if_a_rank_has_one() -> None:
    def work(ranks: Ranks) -> Tensor:
        return ranks.largest(torch.tensor([1.0, float("nan") if ranks.rank == 1 else 2.0, -3.0]))

    for found in on_ranks(2, work):
        assert torch.equal(found.isnan(), torch.tensor([False, True, False]))
        assert found[[0, 2]].tolist() == [1.0, -3.0]


def test_what_a_rank_adds() -> None:
    x = torch.randn(3, 4)
    first, second = on_ranks(2, lambda ranks: ranks.addend(x))
    assert torch.equal(first, x)
    assert not second.any()


def test_one_rank_has_all() -> None:
    x = torch.randn(3, 4)
    assert ONE_RANK.sum(x) is ONE_RANK.shared(x) is ONE_RANK.gathered(x, [4]) is ONE_RANK.addend(x) is x
    assert torch.equal(ONE_RANK.largest(x), x)
    assert ONE_RANK.told(7, x.device) == [7]


def test_a_wait_in_vain_ends() -> None:
    def work(ranks: Ranks) -> Tensor:
        if ranks.rank == 1:
            raise KeyError("its own error")
        return ranks.sum(torch.ones(3))

    with pytest.raises(KeyError, match="its own error"):
        on_ranks(2, work)

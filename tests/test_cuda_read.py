"""read in CUDA: it goes over every byte, which its sum shows."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from cuda_place import EMULATED, THIN, Place, every_place
from cuda_place import inputs_arrive as inputs_arrive
from torch import Tensor

WORDS = 4  # of 32 bits in one load
GRID = 512 * 8  # threads of a block; blocks that a device of one multiprocessor gets at most
ROUND = 8 * GRID  # loads that are in flight together
# A thread's, a block's and one more or less, several blocks', whole rounds, and some over.
LOADS = [1, 31, 33, 511, 512, 513, GRID - 1, GRID + 1, ROUND - GRID + 5, ROUND, ROUND + 1, 2 * ROUND + 12_345]
if THIN:
    LOADS = [1, 513, ROUND + 777]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def words(loads: int) -> Tensor:
    return torch.randint(-(2**31), 2**31 - 1, (WORDS * loads,), dtype=torch.int32)


def sum_of(source: Tensor) -> Tensor:
    """Modulo 2^32, as the operator has it."""
    return source.view(torch.int32).long().sum().to(torch.int32)[None]


def one_multiprocessor(place: Place) -> AbstractContextManager[None]:
    """Where that can be chosen: few bytes are then many rounds of the grid."""
    if place is not EMULATED:
        return nullcontext()
    from cuda_on_cpu import library

    return library.multiprocessors(1)


@pytest.mark.parametrize("loads", LOADS)
@every_place
def test_every_word_is_read(place: Place, loads: int) -> None:
    source = words(loads)
    with one_multiprocessor(place):
        found = place.operators.read(source.to(place.device)).cpu()
    assert found.dtype == torch.int32
    assert torch.equal(found, sum_of(source))


@every_place
def test_the_same_sum_in_any_order(place: Place) -> None:
    source = words(3 * GRID + 300)
    for order in place.orders:
        with place.order(order), one_multiprocessor(place):
            assert torch.equal(place.operators.read(source.to(place.device)).cpu(), sum_of(source))


@every_place
def test_each_word_counts_once(place: Place) -> None:
    """Also at the ends of a round, and of one that is not full."""
    source = torch.zeros(WORDS * (ROUND + 600), dtype=torch.int32)
    for at in (0, 3, WORDS * ROUND - 1, WORDS * ROUND, source.numel() - 1):
        source.zero_()[at] = 1 << (at % 31)
        with one_multiprocessor(place):
            assert place.operators.read(source.to(place.device)).item() == 1 << (at % 31)


@every_place
def test_a_sum_begins_at_0_each_time(place: Place) -> None:
    source = words(600).to(place.device)
    first = place.operators.read(source)
    assert torch.equal(place.operators.read(source), first)
    assert torch.equal(first.cpu(), sum_of(source.cpu()))


@every_place
def test_any_dtype_and_nothing(place: Place) -> None:
    for source in (torch.randn(64).half(), torch.randn(7, 8), torch.ones(48, dtype=torch.uint8)):
        assert torch.equal(place.operators.read(source.to(place.device)).cpu(), sum_of(source.flatten()))
    assert place.operators.read(torch.zeros(0, device=place.device)).tolist() == [0]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (torch.zeros(8, 8).t(), "read: source is not contiguous"),
        (torch.zeros(5), "source has 20 bytes; expected a multiple of 16 on a GPU"),
        (torch.zeros(12)[1:9], "source is not aligned to 16 bytes"),
    ],
    ids=["strided", "size", "place"],
)
def test_a_wrong_argument_is_named(source: Tensor, says: str) -> None:
    with pytest.raises(RuntimeError, match=says.replace("[", r"\[")):
        EMULATED.operators.read(source)

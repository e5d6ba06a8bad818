"""copy, and read, which goes over every byte, as its sum shows."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from backends import CUDA, EMULATED, KERNELS, THIN, Backend, on
from torch import Tensor

WORDS = 4  # of 32 bits in one load of a GPU
GRID = 512 * 8  # threads of a block; blocks that a device of one multiprocessor gets at most
ROUND = 8 * GRID  # loads that are in flight together
# A thread's, a block's and one more or less, several blocks', whole rounds, and some over.
LOADS = [1, 31, 33, 511, 512, 513, GRID - 1, GRID + 1, ROUND - GRID + 5, ROUND, ROUND + 1, 2 * ROUND + 12_345]
# A CPU takes 64 words at a time, and any number.
COUNTS = [0, 1, 63, 64, 100, 65536, 200_003]
if THIN:
    LOADS, COUNTS = [1, 513, ROUND + 777], [1, 63, 200_003]

CPU_ALONE = [one for one in KERNELS if one not in CUDA]


def words(count: int) -> Tensor:
    return torch.randint(-(2**31), 2**31 - 1, (count,), dtype=torch.int32)


def sum_of(source: Tensor) -> Tensor:
    """Modulo 2^32, as the operator has it."""
    return source.flatten().view(torch.int32).long().sum().to(torch.int32)[None]


def small(backend: Backend) -> AbstractContextManager[None]:
    """A device of one multiprocessor, if that can be chosen: few bytes are then many rounds of the grid."""
    if backend is not EMULATED:
        return nullcontext()
    from cuda_on_cpu import library

    return library.multiprocessors(1)


def read(backend: Backend, source: Tensor) -> Tensor:
    with small(backend):
        found: Tensor = backend.run("read", source=source)
    return found


@pytest.mark.parametrize("loads", LOADS)
@on(KERNELS)
def test_every_word_is_read(backend: Backend, loads: int) -> None:
    source = words(WORDS * loads)
    found = read(backend, source)
    assert found.dtype == torch.int32
    assert torch.equal(found, sum_of(source)), f"read on {backend}, {loads} loads"


@pytest.mark.parametrize("count", COUNTS)
@on(CPU_ALONE)
def test_any_number_of_words_is_read(backend: Backend, count: int) -> None:
    source = words(count)
    for schedule in (nullcontext(), *backend.schedules()):
        with schedule:
            assert torch.equal(read(backend, source), sum_of(source)), f"read on {backend}, {count} words"


@on(KERNELS)
def test_the_same_sum_in_any_order(backend: Backend) -> None:
    source = words(WORDS * (3 * GRID + 300))
    for schedule in backend.schedules():
        with schedule:
            assert torch.equal(read(backend, source), sum_of(source))


@on(KERNELS)
def test_each_word_counts_once(backend: Backend) -> None:
    """Also at the ends of a round, and of one that is not full."""
    source = torch.zeros(WORDS * (ROUND + 600), dtype=torch.int32)
    for at in (0, 3, WORDS * ROUND - 1, WORDS * ROUND, source.numel() - 1):
        source.zero_()[at] = 1 << (at % 31)
        assert read(backend, source).item() == 1 << (at % 31)


@on(CUDA)
def test_a_sum_begins_at_0_each_time(backend: Backend) -> None:
    source = words(WORDS * 600).to(backend.device)
    first = backend.operators.read(source)
    assert torch.equal(backend.operators.read(source), first)
    assert torch.equal(first.cpu(), sum_of(source.cpu()))


@on(KERNELS)
def test_any_dtype_and_nothing(backend: Backend) -> None:
    for source in (torch.randn(64).half(), torch.randn(7, 8), torch.ones(48, dtype=torch.uint8)):
        assert torch.equal(read(backend, source), sum_of(source))
    assert read(backend, torch.zeros(0)).tolist() == [0]


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 5000, 4 * GRID * 16 + 48 + 5])
@on(KERNELS)
def test_copy(backend: Backend, count: int) -> None:
    """Of whole loads of 16 bytes and some bytes more, in memory of its own."""
    source = torch.randint(0, 256, (count,), dtype=torch.uint8)
    with small(backend):
        copied = backend.run("copy", source=source)
    assert torch.equal(copied, source), f"copy on {backend}, {count} bytes"


@on(KERNELS)
def test_copy_of_a_view_that_begins_anywhere(backend: Backend) -> None:
    source = torch.randn(5000).to(backend.device)
    for schedule in (nullcontext(), *backend.schedules()):
        with schedule, small(backend):
            copied = backend.operators.copy(source[1:])
        assert torch.equal(copied.cpu(), source[1:].cpu())
        assert copied.data_ptr() != source[1:].data_ptr()

"""decode_layers gives the bits of the operators that it stands for, by four kernels a layer and by one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from backends import CUDA, EMULATED, THIN, Backend, on, parameter, same_bits
from layer_stacks import Shapes, Stack, drawn_cache, drawn_counters, drawn_stack
from torch import Tensor

SMALL = Shapes()
# heads that the one kernel takes in one go, parts of the neurons with more than one list, two splits
LONG = Shapes(hidden=192, heads=3, intermediate=4200, capacity=300, layers=2, slots=2)
WIDE = Shapes(hidden=136, heads=1, intermediate=40, capacity=20, layers=1)  # heads of 136
LARGE = Shapes(hidden=2112, heads=33, intermediate=40, layers=1)  # some threads have two runs of a token

# shapes, slots and positions of the tokens, whether one kernel takes them
STEPS: list[tuple[Shapes, list[int], list[int], bool]] = [
    (SMALL, [1], [0], True),
    (LONG, [0], [290], True),
    (LONG, [1, 0, 1], [255, 3, 256], True),  # two tokens of one sequence, in two splits
    (SMALL, [0, -1, 2, 0, 5], [5, 7, 39, 6, 4], True),  # an absent one, one of no slot
    (SMALL, [0] * 9, list(range(9)), False),
    (WIDE, [2, 0], [19, 0], False),
    (LARGE, [0, 1, 2], [3, 4, 5], True),
]
if THIN:
    LONG = Shapes(hidden=128, heads=2, intermediate=300, capacity=270, layers=1, slots=2)
    STEPS = [
        (SMALL, [1], [3], True),
        (LONG, [1, 0, 1], [255, 3, 256], True),
        (SMALL, [0] * 9, list(range(9)), False),
    ]
CASES = [
    parameter(one, fmt, index, name=f"{fmt}-{index}")
    for one in CUDA
    for number, fmt in enumerate(one.formats)
    for index in range(len(STEPS))
    if not THIN or (number + index) % 2 == 0
]


def stack_of(backend: Backend, fmt: str, index: int) -> Stack:
    shapes, slots, positions, _ = STEPS[index]
    stack = drawn_stack(backend, fmt, shapes, slots, positions, qk_layernorm=index % 2 == 0)
    stack.arguments["longest"] = min(max(positions) + 1, shapes.capacity)
    return stack


def variants(backend: Backend) -> Iterator[AbstractContextManager[object]]:
    """Orders of threads and sizes of the device."""
    yield nullcontext()
    if backend is EMULATED and not THIN:
        from cuda_on_cpu import library

        yield from backend.schedules()
        yield library.multiprocessors(1)


def small_device(backend: Backend) -> AbstractContextManager[object]:
    """Few blocks, so that the emulator runs them all at once, and each has several tiles and units."""
    if backend is not EMULATED:
        return nullcontext()
    from cuda_on_cpu import library

    return library.multiprocessors(3)


@pytest.mark.parametrize(("backend", "fmt", "index"), CASES, indirect=["backend"])
def test_a_step_has_the_bits_of_its_operators(backend: Backend, fmt: str, index: int) -> None:
    torch.manual_seed(index)
    shapes, slots, positions, takes_one = STEPS[index]
    stack, cache = (
        stack_of(backend, fmt, index),
        drawn_cache(shapes, (torch.float16, torch.bfloat16)[index % 2]),
    )
    expected_cache, expected_counts = cache.clone(), torch.zeros(2, dtype=torch.int64)
    expected = stack.by_operators(backend, expected_cache, expected_counts)
    counters = drawn_counters(shapes, len(slots))
    with small_device(backend):
        for one_kernel in (False, True) if takes_one else (False,):
            counters.zero_()
            for variant in variants(backend):
                found, counts = cache.clone(), torch.zeros(2, dtype=torch.int64)
                with variant:
                    out = stack.at_once(backend, found, counts, counters, one_kernel)
                    counters[0] = 0  # the next device has another number of blocks
                assert same_bits(out, expected), f"one_kernel {one_kernel}"
                assert same_bits(found, expected_cache)
                assert counts.tolist() == expected_counts.tolist()
                assert not counters[1:].any(), "a counter of strips or heads is not 0 again"


@on(CUDA)
def test_copies_as_older_devices_make_them(backend: Backend) -> None:
    if backend is not EMULATED:
        pytest.skip("a GPU has one kind of copies")
    from cuda_on_cpu import library

    for fmt in ("float16", "int4-g32"):
        stack, cache = drawn_stack(backend, fmt, LONG, [1, 0, 1], [255, 3, 256]), drawn_cache(LONG)
        expected_cache = cache.clone()
        expected = stack.by_operators(backend, expected_cache, None)
        with small_device(backend), library.without_bulk_copies():
            out = stack.at_once(backend, cache, None, drawn_counters(LONG, 3), False)
        assert same_bits(out, expected)
        assert same_bits(cache, expected_cache)


@on(CUDA)
@pytest.mark.parametrize("one_kernel", [False, True], ids=["layers", "one"])
def test_company_changes_no_bit(backend: Backend, one_kernel: bool) -> None:
    slots, positions = [2, 0, 1, 0, -1], [11, 30, 0, 31, 3]
    stack = drawn_stack(backend, "fp8", SMALL, slots, positions)
    cache = drawn_cache(SMALL)

    def run(tokens: list[int]) -> tuple[Tensor, Tensor]:
        picked = {name: stack.arguments[name][tokens] for name in ("x", "slots", "positions")}
        some, filled = Stack(SMALL, stack.layers, stack.arguments | picked), cache.clone()
        with small_device(backend):
            out = some.at_once(
                backend, filled, torch.zeros(2, dtype=torch.int64), drawn_counters(SMALL, 5), one_kernel
            )
        return out, filled

    together, filled = run([0, 1, 2, 3, 4])
    for token in (0, 1, 2):
        alone, own = run([token])
        assert same_bits(alone[0], together[token])
        at = (slice(None), slice(None), slots[token], slice(None), positions[token])
        assert same_bits(own[at], filled[at])


@on(CUDA)
@pytest.mark.parametrize("one_kernel", [False, True], ids=["layers", "one"])
def test_steps_that_follow_each_other(backend: Backend, one_kernel: bool) -> None:
    """The counters of one step are those of the next, as in a graph that is replayed."""
    stack, cache = drawn_stack(backend, "int4", SMALL, [0, 1], [4, 9]), drawn_cache(SMALL)
    expected_cache, counters = cache.clone(), drawn_counters(SMALL, 2)
    with small_device(backend):
        for _ in range(3):
            expected = stack.by_operators(backend, expected_cache, None)
            out = stack.at_once(backend, cache, None, counters, one_kernel)
            assert same_bits(out, expected)
            stack.arguments["positions"] += 1
            stack.arguments["longest"] += 1
            stack.arguments["x"] = out
    assert same_bits(cache, expected_cache)


@on(CUDA)
def test_what_one_kernel_does_not_take(backend: Backend) -> None:
    for shapes, tokens, reason in (
        (SMALL, 9, "more than 8 tokens"),
        (WIDE, 1, "heads of more than 64 dimensions"),
    ):
        stack = drawn_stack(backend, "float16", shapes, [0] * tokens, list(range(tokens)))
        with pytest.raises(RuntimeError, match=f"one_kernel is true with {reason}; expected false"):
            stack.at_once(backend, drawn_cache(shapes), None, drawn_counters(shapes, tokens), True)

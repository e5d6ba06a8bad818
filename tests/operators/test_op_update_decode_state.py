"""What a decode step leaves for the next one, against a plain loop, and as a reader of the ring sees it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from backends import BACKENDS, CPU, CUDA, GPU, THIN, Backend, every_backend, on, on_the_emulator
from decode_states import ROWS, SLOTS, VOCAB, State, advanced, extreme_state, random_state, read
from dispatch_double import as_cuda

from adept_fast import ops
from adept_fast.ops import reference

SEEDS = 6 if THIN else 40
# Others refuse what has no successor.
of_any_integers = on([one for one in BACKENDS if not one.refuses_values])


def update(backend: Backend, state: State) -> State:
    """The state behind the step; ``state`` stays as it is. The ring is in the host's memory, pinned."""
    after = {name: tensor.clone() for name, tensor in state.items()}
    ring = backend.pinned(state["token_ring"])
    assert backend.run("update_decode_state", host=("token_ring",), **(after | {"token_ring": ring})) is None
    return after | {"token_ring": ring}


def assert_right(backend: Backend, state: State, what: object = "") -> None:
    found, expected = update(backend, state), advanced(state)
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), (
            f"update_decode_state on {backend}, {len(tensor)} rows, {name}, {what}"
        )


@pytest.mark.parametrize("rows", [*ROWS, 77])
@every_backend
def test_the_plain_loop(backend: Backend, rows: int) -> None:
    for seed in range(SEEDS if rows < 77 else 1):
        assert_right(backend, random_state(rows, depth=1 + seed % 5, seed=seed), f"seed {seed}")


@of_any_integers
def test_any_integers(backend: Backend) -> None:
    """No value of a device's memory can be refused: each writes its own row, and nothing past it."""
    for seed in range(SEEDS):
        assert_right(backend, extreme_state(33, depth=1 + seed % 5, seed=seed), f"seed {seed}")


@pytest.mark.parametrize("count", [2**63 - 1, 2**63 - 2, -(2**63), -1])
@of_any_integers
def test_the_last_counts_have_a_slot_of_the_ring(backend: Backend, count: int) -> None:
    for depth in (1, 3, 7, 8):
        state = random_state(3, depth=depth, seed=0)
        state["counts"][:] = count
        assert_right(backend, state, f"depth {depth}")


@pytest.mark.parametrize("count", [0, 2**31 - 2, 2**32 - 2, 2**40])
@every_backend
def test_the_ring_goes_round(backend: Backend, count: int) -> None:
    """Every word stays for as many steps as the ring is deep, under its own number."""
    state = random_state(2, depth=4, seed=0)
    state["slots"][:] = torch.tensor([1, -1])
    state["limits"][:], state["ends"][:], state["counts"][:] = 99, False, count
    told: list[int] = []
    for step in range(10):
        state["chosen"][:] = step % VOCAB
        state = update(backend, state)
        told.append(step % VOCAB)
        for back, id_ in enumerate(reversed(told[-4:])):
            number = count + step + 1 - back
            words = state["token_ring"][:, number % 4].tolist()
            assert [read(word) for word in words] == [(number % 2**32, id_), (number % 2**32, -2)]


@on(CUDA)
def test_replays_of_a_capture_tell_the_host(backend: Backend) -> None:
    """Which reads the ring while the device runs on, and never finds a number without its id."""
    state = random_state(2, depth=4, seed=0)
    ring = backend.pinned(state["token_ring"])
    state = {name: tensor.to(backend.device) for name, tensor in state.items()} | {"token_ring": ring}
    state["slots"][:] = torch.tensor([3, -1])
    state["limits"][:], state["ends"][:], state["chosen"][:] = 9999, False, 5
    state["counts"][:], state["positions"][:] = 0, 0
    table = backend.pinned(torch.randn(VOCAB, 8).half())

    def step() -> None:
        backend.operators.embed(table, state["ids"])
        backend.operators.update_decode_state(**state)

    replay = captured(step) if backend is GPU else step
    words = ring.numpy()
    begun = int(state["counts"][0])
    for number in range(begun + 1, begun + 100):
        replay()
        for _ in range(10_000_000):
            if read(int(words[1, number % 4]))[0] == number:
                break
        assert read(int(words[1, number % 4])) == (number, -2)
    backend.synchronize()
    assert read(int(words[0, number % 4])) == (number, 5)
    assert state["positions"].tolist() == [number, 0]


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """Replays a step on a GPU; it has run once."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        step()
    return graph.replay


@every_backend
def test_what_ends_a_text(backend: Backend) -> None:
    """An id of its slot's, one that is no token, the limit; each row by itself."""
    rows = [  # chosen, slot, position, limit, whether that ends it
        (3, 0, 5, 99, True),
        (3, 1, 5, 99, False),
        (2, 0, 5, 99, False),
        (2, 2, 5, 6, True),
        (2, 2, 5, 7, False),
        (2, 2, 5, 1, True),
        (-1, 1, 5, 99, True),
        (VOCAB, 1, 5, 99, True),
        (2**40, 1, 5, 99, True),
        (VOCAB - 1, 3, 5, 99, True),
        (VOCAB - 1, 2, 5, 99, False),
    ]
    state = random_state(len(rows), depth=2, seed=0)
    columns = zip(*rows, strict=True)
    for name, values in zip(("chosen", "slots", "positions", "limits"), columns, strict=False):
        state[name][:] = torch.tensor(values)
    state["ends"][:] = False
    state["ends"][0, 3] = state["ends"][3, VOCAB - 1] = True
    after = update(backend, state)
    assert after["slots"].tolist() == [-1 if row[4] else row[1] for row in rows]
    assert after["ids"].tolist() == [max(row[0], 0) for row in rows]
    assert after["positions"].tolist() == [6] * len(rows)


@of_any_integers
def test_a_slot_that_does_not_exist_is_absent(backend: Backend) -> None:
    state = random_state(4, depth=2, seed=0)
    state["slots"][:] = torch.tensor([SLOTS, -2, 2**40, -(2**40)])
    after = update(backend, state)
    for name in ("ids", "slots", "positions"):
        assert torch.equal(after[name], state[name])
    count = after["counts"]
    words = after["token_ring"].gather(1, (count % 2)[:, None])[:, 0].tolist()
    assert [read(word)[1] for word in words] == [reference.ABSENT] * 4


@every_backend
def test_a_text_is_read_from_the_ring_behind_the_steps(backend: Backend) -> None:
    """Three rows: one ends with an id, one at its limit, one was never there. The ring goes round twice."""
    state = random_state(3, depth=4, seed=0)
    for name, values in {"ids": [1, 2, 3], "slots": [1, 3, -1], "positions": [10, 20, 30]}.items():
        state[name][:] = torch.tensor(values)
    state["limits"][:] = torch.tensor([99, 24, 99])
    state["counts"][:] = 2**32 - 3
    state["ends"][:] = False
    state["ends"][1, 6] = state["ends"][3, 5] = True
    chosen = [[5, 6, 2], [5, 0, 2], [6, 1, 2], [4, 2, 2], [4, 3, 2], [4, 3, 2], [4, 3, 2], [4, 3, 2]]
    told = []
    for step in chosen:
        state["chosen"][:] = torch.tensor(step)
        state = update(backend, state)
        count = int(state["counts"][0])
        words = [read(word) for word in state["token_ring"][:, count % 4].tolist()]
        assert {number for number, _ in words} == {count % 2**32}
        told.append([id_ for _, id_ in words])
    assert [row[0] for row in told] == [5, 5, 6, -2, -2, -2, -2, -2]
    assert [row[1] for row in told] == [6, 0, 1, 2, -2, -2, -2, -2]
    assert [row[2] for row in told] == [-2] * 8
    assert state["slots"].tolist() == [-1, -1, -1]
    assert state["ids"].tolist() == [6, 2, 3]
    assert state["positions"].tolist() == [13, 24, 30]


@on(CUDA)
def test_the_same_in_any_order(backend: Backend) -> None:
    for schedule in backend.schedules():
        with schedule:
            assert_right(backend, random_state(77, depth=5, seed=2))


@every_backend
def test_no_rows(backend: Backend) -> None:
    assert_right(backend, random_state(0, depth=2, seed=0))


@on_the_emulator
def test_a_ring_that_the_device_cannot_write_to_is_refused(backend: Backend) -> None:
    state = random_state(2, depth=2, seed=0)
    before = {name: tensor.clone() for name, tensor in state.items()}
    call = backend.operators.update_decode_state
    from cuda_on_cpu import library

    says = r"^token_ring is in memory of the host that the GPU"
    with library.unpinned(), pytest.raises(RuntimeError, match=says):
        call(**state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())


@on([*CPU[:1], *CUDA])
def test_it_is_called_by_name(backend: Backend) -> None:
    state = random_state(5, depth=2, seed=0)
    expected = advanced(state)
    after = {name: tensor.to(backend.device) for name, tensor in state.items()}
    after["token_ring"] = backend.pinned(state["token_ring"])
    with as_cuda(backend.operators) if backend in CUDA else nullcontext():
        ops.update_decode_state(**after)
    backend.synchronize()
    assert all(torch.equal(tensor.cpu(), expected[name]) for name, tensor in after.items())

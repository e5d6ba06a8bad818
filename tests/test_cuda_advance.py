"""update_decode_state in CUDA against its definition, and as a reader of the ring sees it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from advancing import ROWS, SLOTS, VOCAB, State, advanced, extreme_state, random_state, read
from cuda_place import EMULATED, GPU, THIN, Place, every_place
from cuda_place import inputs_arrive as inputs_arrive
from dispatch_double import as_cuda
from torch import Tensor

from adept_fast import ops
from adept_fast.ops import reference

SEEDS = 6 if THIN else 40


def moved(state: State, place: Place) -> State:
    """As the operator takes it: the ring stays in the host's memory, pinned."""
    on_device = {name: tensor.to(place.device, copy=True) for name, tensor in state.items()}
    return on_device | {"token_ring": place.pinned(state["token_ring"])}


def update_decode_state(place: Place, state: State) -> State:
    """The state behind the step; ``state`` stays as it is."""
    after = moved(state, place)
    assert place.operators.update_decode_state(**after) is None
    if place is GPU:
        torch.cuda.synchronize()  # the ring is the host's already
    return {name: tensor.cpu() for name, tensor in after.items()}


def assert_same(found: State, expected: State, what: object = "") -> None:
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), (name, what)


@pytest.mark.parametrize("rows", ROWS)
@every_place
def test_advance(place: Place, rows: int) -> None:
    for seed in range(SEEDS):
        state = random_state(rows, depth=1 + seed % 5, seed=seed)
        assert_same(update_decode_state(place, state), advanced(state), seed)


@every_place
def test_more_rows_than_a_warp_has_lanes(place: Place) -> None:
    state = random_state(77, depth=3, seed=0)
    assert_same(update_decode_state(place, state), advanced(state))


@every_place
def test_any_integers(place: Place) -> None:
    """No value of the device's memory can be refused: each writes its own row, and nothing past it."""
    for seed in range(SEEDS):
        state = extreme_state(33, depth=1 + seed % 5, seed=seed)
        assert_same(update_decode_state(place, state), advanced(state), seed)


@pytest.mark.parametrize("count", [2**63 - 1, 2**63 - 2, -(2**63), -1])
@every_place
def test_the_last_counts_have_a_slot_of_the_ring(place: Place, count: int) -> None:
    for depth in (1, 3, 7, 8):
        state = random_state(3, depth=depth, seed=0)
        state["counts"][:] = count
        assert_same(update_decode_state(place, state), advanced(state), depth)


@pytest.mark.parametrize("count", [0, 2**31 - 2, 2**32 - 2, 2**40])
@every_place
def test_the_ring_goes_round(place: Place, count: int) -> None:
    """Every word stays for as many steps as the ring is deep, under its own number."""
    state = moved(random_state(2, depth=4, seed=0), place)
    state["slots"][:] = torch.tensor([1, -1])
    state["limits"][:], state["ends"][:], state["counts"][:] = 99, False, count
    told: list[int] = []
    for step in range(10):
        state["chosen"][:] = step % VOCAB
        place.operators.update_decode_state(**state)
        if place is GPU:
            torch.cuda.synchronize()
        told.append(step % VOCAB)
        for back, id_ in enumerate(reversed(told[-4:])):
            number = count + step + 1 - back
            words = state["token_ring"][:, number % 4].tolist()
            assert [read(word) for word in words] == [(number % 2**32, id_), (number % 2**32, -2)]


@every_place
def test_replays_of_a_capture_tell_the_host(place: Place) -> None:
    """Which reads the ring while the device runs on, and never finds a number without its id."""
    state = moved(random_state(2, depth=4, seed=0), place)
    state["slots"][:] = torch.tensor([3, -1])
    state["limits"][:], state["ends"][:], state["chosen"][:] = 9999, False, 5
    state["counts"][:], state["positions"][:] = 0, 0
    table = place.pinned(torch.randn(VOCAB, 8).half())

    def step() -> None:
        place.operators.embed(table, state["ids"])
        place.operators.update_decode_state(**state)

    replay = captured(step) if place is GPU else step
    words = state["token_ring"].numpy()
    begun = int(state["counts"][0])
    for number in range(begun + 1, begun + 100):
        replay()
        for _ in range(10_000_000):
            if read(int(words[1, number % 4]))[0] == number:
                break
        assert read(int(words[1, number % 4])) == (number, -2)
    if place is GPU:
        torch.cuda.synchronize()
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


@every_place
def test_what_ends_a_text(place: Place) -> None:
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
    for name, values in zip(
        ("chosen", "slots", "positions", "limits"), zip(*rows, strict=True), strict=False
    ):
        state[name][:] = torch.tensor(values)
    state["ends"][:] = False
    state["ends"][0, 3] = state["ends"][3, VOCAB - 1] = True
    after = update_decode_state(place, state)
    assert after["slots"].tolist() == [-1 if row[4] else row[1] for row in rows]
    assert after["ids"].tolist() == [max(row[0], 0) for row in rows]
    assert after["positions"].tolist() == [6] * len(rows)


@every_place
def test_a_slot_that_does_not_exist_is_absent(place: Place) -> None:
    state = random_state(4, depth=2, seed=0)
    state["slots"][:] = torch.tensor([SLOTS, -2, 2**40, -(2**40)])
    after = update_decode_state(place, state)
    for name in ("ids", "slots", "positions"):
        assert torch.equal(after[name], state[name])
    count = after["counts"]
    words = after["token_ring"].gather(1, (count % 2)[:, None])[:, 0].tolist()
    assert [read(word)[1] for word in words] == [reference.ABSENT] * 4


@every_place
def test_the_same_in_any_order(place: Place) -> None:
    state = random_state(77, depth=5, seed=2)
    for order in place.orders:
        with place.order(order):
            assert_same(update_decode_state(place, state), advanced(state), order)


@every_place
def test_no_rows(place: Place) -> None:
    state = random_state(0, depth=2, seed=0)
    assert_same(update_decode_state(place, state), state)


def test_a_ring_that_the_device_cannot_write_to_is_refused() -> None:
    state = random_state(2, depth=2, seed=0)
    before = {name: tensor.clone() for name, tensor in state.items()}
    call = EMULATED.operators.update_decode_state
    from cuda_on_cpu import library

    with (
        library.unpinned(),
        pytest.raises(RuntimeError, match=r"^token_ring is in memory of the host that the GPU"),
    ):
        call(**state)
    assert_same(state, before)


@every_place
def test_it_is_called_by_name(place: Place) -> None:
    state = random_state(5, depth=2, seed=0)
    after = moved(state, place)
    with as_cuda(place.operators):
        ops.update_decode_state(**after)
    if place is GPU:
        torch.cuda.synchronize()
    assert_same({name: tensor.cpu() for name, tensor in after.items()}, advanced(state))


def wrong(name: str) -> list[tuple[Tensor, str]]:
    """What may not stand for an argument, and what is said of it."""
    good = random_state(3, depth=2, seed=0)[name]
    cases = [(good.int(), f"{name} has dtype")]
    if name == "ends":
        return [*cases, (good[0], "ends has shape [7]; expected contiguous [slots, vocab], each 1 or more")]
    if name == "token_ring":
        said = "token_ring has shape [3, 0]; expected contiguous [3, 1 or more]"
        return [*cases, (good[:2], "token_ring has shape [2, 2]"), (good[:, :0], said)]
    return [*cases, (good.repeat_interleave(2)[::2], f"{name} is not contiguous")]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [(name, *case) for name in random_state(1, depth=1, seed=0) for case in wrong(name)],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_a_wrong_argument_is_named(name: str, value: Tensor, says: str) -> None:
    state = random_state(3, depth=2, seed=0) | {name: value}
    with pytest.raises(RuntimeError) as caught:
        EMULATED.operators.update_decode_state(**state)
    assert says in str(caught.value)

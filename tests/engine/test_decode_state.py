"""The state of decode steps: what is placed, what is read, and what must not happen unseen."""

from __future__ import annotations

import pytest
import torch

from adept_fast import Runtime, ops
from adept_fast.engine import decode_state
from adept_fast.engine.decode_state import ENDLESS, RING_DEPTH, DecodeState, RowInput

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def looked_at_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_state, "_POLLS_BETWEEN_CHECKS", 10)


def test_what_is_placed_keeps_its_addresses_and_leaves_the_rest_absent() -> None:
    state = DecodeState(5, 3, 10, CPU)
    rows = state.rows(5)
    addresses = [tensor.data_ptr() for tensor in vars(rows).values()]
    state.place([RowInput(7, 2, 30, 40), RowInput(8, 0, 5)])
    assert rows.ids.tolist()[:2] == [7, 8]
    assert rows.slots.tolist() == [2, 0, -1, -1, -1]
    assert rows.positions.tolist()[:2] == [30, 5]
    assert rows.limits.tolist()[:2] == [40, ENDLESS]
    state.place([])
    assert rows.slots.tolist() == [-1] * 5
    assert [tensor.data_ptr() for tensor in vars(state.rows(5)).values()] == addresses


def test_a_slot_ends_at_its_own_tokens_alone() -> None:
    state = DecodeState(2, 2, 10, CPU)
    state.end_at(0, (3, 9, 10, 10**9))  # of which two are no tokens
    state.end_at(1, (4,))
    state.end_at(0, ())
    assert state.rows(1).ends.nonzero().tolist() == [[1, 4]]


@pytest.mark.parametrize("step", [1, RING_DEPTH, 2**31 - 1, 2**31, 2**32 + 3])
@pytest.mark.parametrize("chosen", [0, 262_143, ops.INVALID, ops.ABSENT])
def test_a_word_is_read_as_it_was_told(step: int, chosen: int) -> None:
    state = DecodeState(2, 1, 10, CPU)
    word = (step % 2**32 << 32 | chosen & 0xFFFFFFFF).to_bytes(8, "little")
    state.rows(2).token_ring[1, step % RING_DEPTH] = int.from_bytes(word, "little", signed=True)
    assert state.read(1, step) == chosen
    with pytest.raises(RuntimeError, match="of row 1 was launched, and left nothing in the ring"):
        state.read(1, step + RING_DEPTH)  # whose word would stand in its place


def test_a_step_that_never_came_is_an_error_and_no_wait() -> None:
    with pytest.raises(RuntimeError, match="step 1 of row 0 was launched, and left nothing in the ring"):
        DecodeState(2, 1, 10, CPU).read(0, 1)


def test_an_end_that_the_host_does_not_know_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime.load("demo", device="cpu", progress=False)
    state = runtime.engine.runner._state
    monkeypatch.setattr(state, "end_at", lambda slot, token_ids: state._ends.fill_(True))
    with pytest.raises(RuntimeError, match="slot 0 has ended on the device before its text has"):
        runtime.generate("Once upon a time", max_new_tokens=5, ignore_eos=True)

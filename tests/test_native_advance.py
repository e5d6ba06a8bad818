"""update_decode_state and embed in C++ against their definition, which test_ops_reference.py tests."""

from __future__ import annotations

import native
import torch
from advancing import ROWS, random_state
from native import call
from native import settled as settled

from adept_fast import ops
from adept_fast.ops import reference


def test_advance_is_the_definition() -> None:
    for seed in range(200):
        state = random_state(ROWS[seed % len(ROWS)], depth=1 + seed % 5, seed=seed)
        expected = {name: tensor.clone() for name, tensor in state.items()}
        reference.update_decode_state(**expected)
        assert call.update_decode_state(**state) is None
        for name, tensor in state.items():
            assert torch.equal(tensor, expected[name]), (name, seed)


def test_advance_by_its_wrapper() -> None:
    state = random_state(5, depth=3, seed=1)
    expected = {name: tensor.clone() for name, tensor in state.items()}
    call.update_decode_state(**expected)
    ops.update_decode_state(**state)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


def test_embed_by_its_wrapper() -> None:
    for dtype in native.FLOATS.values():
        table, ids = torch.randn(9, 5).to(dtype), torch.tensor([8, 0, 8])
        found = ops.embed(table, ids)
        assert found.dtype == torch.float32
        assert torch.equal(found, table[ids].float())

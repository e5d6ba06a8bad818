"""Operators in plain PyTorch: attention of prompts, bounds that the host checks, and no look at values."""

from __future__ import annotations

import pytest
import torch
from backends import EPS
from decode_states import random_state
from matrices import norm
from torch import Tensor

from adept_fast import ops
from adept_fast.ops import reference


def attention64(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """One query [heads, head_dim] over k and v of [heads, length, head_dim]: [heads · head_dim]."""
    scores = torch.einsum("hd,hld->hl", q.double(), k.double()) * scale
    return torch.einsum("hl,hld->hd", scores.softmax(-1), v.double()).flatten()


@pytest.mark.parametrize("poison", [1e4, float("nan")])
@pytest.mark.parametrize(("start", "tokens"), [(0, 1), (0, 33), (1, 1), (31, 17), (40, 24)])
def test_prefill_attention(start: int, tokens: int, poison: float) -> None:
    heads, head_dim, end = 3, 80, start + tokens
    cache_layer = torch.randn(2, 3, heads, 64, head_dim).half()
    cache_layer[:, :, :, end:] = poison
    q = torch.randn(tokens, heads, head_dim)
    ours = ops.prefill_attention(q, cache_layer, 1, start, head_dim**-0.5)
    for token in range(tokens):
        k, v = cache_layer[:, 1, :, : start + token + 1]
        exact = attention64(q[token], k, v, head_dim**-0.5)
        torch.testing.assert_close(ours[token].double(), exact, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("longest", [-1, 9, 2**63 - 1, -(2**63)])
def test_more_positions_than_a_slot_has(longest: int) -> None:
    at = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=f"longest is {longest}; expected 0 to 8"):
        reference.decode_attention(torch.randn(1, 2, 16), torch.randn(2, 3, 2, 8, 16), at, at, longest, 0.25)


@pytest.mark.parametrize("start", [-1, 6, 2**63 - 1, -(2**63)])
def test_a_prompt_that_its_slot_does_not_hold(start: int) -> None:
    with pytest.raises(ValueError, match=f"start is {start} of 3 tokens; expected 0 to 5"):
        ops.prefill_attention(torch.randn(3, 2, 16), torch.randn(2, 1, 2, 8, 16), 0, start, 0.25)


def test_no_operator_of_a_step_looks_at_values() -> None:
    """On tensors without values they would fail: what is captured into a graph may not ask for any."""
    tables = ops.rotary_table(8, 25000.0, 6, torch.device("cpu"))
    slots, positions = torch.tensor([2, -1]), torch.tensor([5, 9])
    cache, qkv, norms = torch.randn(2, 3, 2, 6, 16), torch.randn(2, 3 * 2 * 16), norm(16)
    state = random_state(2, depth=4, seed=0)

    def bare(tensor: Tensor) -> Tensor:
        return tensor.to("meta")  # shape and dtype alone

    at = bare(slots), bare(positions)
    appended = [bare(tensor) for tensor in (*norms, *norms)], [bare(table) for table in tables]
    q = reference.rotary_append(bare(qkv), *appended[0], EPS, *appended[1], *at, bare(cache))
    attended = reference.decode_attention(q, bare(cache), at[0], at[1] + 1, 6, 0.25)
    reference.update_decode_state(**{name: bare(tensor) for name, tensor in state.items()})
    assert attended.shape == (2, 32)


def test_counts_of_the_definition_go_on_past_64_bits() -> None:
    counts = torch.tensor([2**63 - 3, -5])
    reference.count_active(torch.ones(2, 40), counts)
    assert counts.tolist() == [-(2**63) + 37, 35]

"""Log-probabilities of sampled tokens, and when the host has them."""

from __future__ import annotations

import math

import pytest
import torch

from adept_fast import TokenLogprob, ops
from adept_fast.engine.scoring import TokenLogprobs
from adept_fast.ops.transfer import Arriving


def test_each_row_has_its_token_and_the_likeliest_ones() -> None:
    weights = torch.tensor([[1.0, 4.0, 2.0, 4.0], [8.0, 1.0, 1.0, 2.0]])
    found = TokenLogprobs(weights.log(), torch.tensor([2, ops.INVALID]), max_top=9)
    entry = found.of(0, 2)
    assert entry == TokenLogprob(
        2, pytest.approx(math.log(2 / 11)), tuple((at, pytest.approx(math.log(4 / 11))) for at in (1, 3))
    )
    assert [type(token_id) for token_id, _ in entry.top] == [int, int]
    assert [token_id for token_id, _ in found.of(0, 9).top] == [1, 3, 2, 0]
    assert found.of(1, 0).top == ()
    assert math.isnan(found.of(1, 0).logprob)
    assert [token_id for token_id, _ in found.of(1, 4).top] == [0, 3, 1, 2]


def test_they_are_of_the_logits_when_they_were_asked_for() -> None:
    logits, ids = torch.tensor([[1.0, 2.0]]), torch.tensor([1])
    found = TokenLogprobs(logits, ids, max_top=1)
    logits.zero_()
    ids.zero_()  # as the next step does
    assert found.of(0, 1).token_id == 1
    assert found.of(0, 1).logprob == pytest.approx(-math.log1p(math.exp(-1)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that this torch can use")
def test_the_host_waits_for_no_later_kernel() -> None:
    square = torch.randn(4096, 4096, device="cuda")
    torch.mm(square, square)
    torch.cuda.synchronize()
    arriving = Arriving(torch.arange(5, device="cuda"))
    for _ in range(200):  # a second or so
        torch.mm(square, square)
    assert arriving.take().tolist() == [0, 1, 2, 3, 4]
    assert not torch.cuda.current_stream().query()

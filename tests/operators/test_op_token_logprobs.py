"""token_logprobs against numpy in float64; a CPU has no kernel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from backends import BACKENDS, CUDA, THIN, Backend, on, same_bits
from torch import Tensor

TILE = 2048  # logits that one block takes
MOST = 20
INFINITY = float("inf")
OTHERS = [one for one in BACKENDS if one.kind != "cpu"]
SHAPES = [(1, 1), (7, 7), (1000, 0), (TILE + 1, 20), (2 * TILE + 3, 3), (37 * TILE + 5, 20)]


def rows_of(vocab: int) -> Tensor:
    """[rows, vocab], of every kind."""
    generator = torch.Generator().manual_seed(vocab)
    normal, some = torch.randn(vocab, generator=generator), torch.rand(vocab, generator=generator)
    rows = [
        normal * 4,
        normal * 1e-3,
        normal * 3 + 500,
        (normal * 2).round(),  # many are equal
        torch.full((vocab,), -1.25),
        torch.where(some < 0.5, 0.0, -0.0),
        torch.where(some < 0.999, -INFINITY, normal),
        torch.arange(vocab) * 0.5,  # the last block has the largest
        -torch.arange(vocab) * 1e-3,  # and the first warp
    ]
    rows[6][vocab // 3] = 0.5
    return torch.stack(rows)


def run(backend: Backend, logits: Tensor, chosen: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Ids and log-probabilities, each [rows, 1 + count]."""
    found = backend.run("token_logprobs", logits=logits, chosen=chosen, count=count)
    assert (found.shape, found.dtype) == ((len(logits), 2, 1 + count), torch.float32)
    return found[:, 0], found[:, 1]


@pytest.mark.parametrize(("vocab", "count"), SHAPES[:4] if THIN else SHAPES)
@on(OTHERS)
def test_every_kind_of_row(backend: Backend, vocab: int, count: int) -> None:
    logits = rows_of(vocab)
    chosen = torch.randint(vocab, (len(logits),), generator=torch.Generator().manual_seed(1))
    ids, logprobs = run(backend, logits, chosen, count)
    exact = logits.double().numpy()
    shifted = exact - exact.max(-1, keepdims=True)
    exact = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    for row, expected in enumerate(exact):
        best = np.lexsort((np.arange(vocab), -logits[row].double().numpy()))[:count]
        assert ids[row].tolist() == [int(chosen[row]), *best.tolist()], row
        # On a CPU, float32 throughout; a kernel rounds only exponentials, sums in a tile, and the result.
        tolerance = {"reference": 1e-5}.get(backend.kind, 2e-6)
        np.testing.assert_allclose(logprobs[row], expected[ids[row].long()], atol=tolerance, rtol=1.2e-7)


@on(OTHERS)
def test_rows_that_are_no_distribution(backend: Backend) -> None:
    """NaN, and ids that exist."""
    logits = torch.randn(7, TILE + 5)
    for row, (at, bad) in enumerate([(0, INFINITY), (TILE + 4, float("nan")), (9, -float("nan"))]):
        logits[row, at] = bad
    logits[3] = -INFINITY
    ids, logprobs = run(backend, logits, torch.tensor([3, 4, 5, 6, -1, TILE + 5, 2**40]), 4)
    assert logprobs[:4].isnan().all()
    assert ((ids[:4] >= 0) & (ids[:4] < TILE + 5)).all()
    # An id that does not exist is none; the others of its row are not concerned.
    assert ids[4:, 0].tolist() == [-1, -1, -1]
    assert logprobs[4:, 0].isnan().all()
    assert logprobs[4:, 1:].isfinite().all()


@on(CUDA)
def test_a_row_has_the_same_bits_alone_and_in_any_order(backend: Backend) -> None:
    logits = rows_of(TILE + 700)
    chosen = torch.arange(len(logits))
    together = backend.run("token_logprobs", logits=logits, chosen=chosen, count=MOST)
    for schedule in backend.schedules():
        with schedule:
            again = backend.run("token_logprobs", logits=logits, chosen=chosen, count=MOST)
        assert same_bits(again, together)
    for row in range(len(logits)):
        only = slice(row, row + 1)
        alone = backend.run("token_logprobs", logits=logits[only], chosen=chosen[only], count=MOST)
        assert same_bits(alone[0], together[row])
    fewer = backend.run("token_logprobs", logits=logits, chosen=chosen, count=2)
    assert same_bits(fewer, together[:, :, :3])


@pytest.mark.parametrize("count", [-1, MOST + 1, 2**62])
@on(CUDA)
def test_a_count_that_the_kernel_does_not_take(backend: Backend, count: int) -> None:
    with pytest.raises(RuntimeError, match=f"count is {count}; expected 0 to {MOST}$"):
        backend.run("token_logprobs", logits=torch.zeros(1, 30), chosen=torch.tensor([0]), count=count)
    with pytest.raises(RuntimeError, match="count is 4; expected 0 to 3"):
        backend.run("token_logprobs", logits=torch.zeros(1, 3), chosen=torch.tensor([0]), count=4)


@on(OTHERS)
def test_no_rows(backend: Backend) -> None:
    ids, _ = run(backend, torch.zeros(0, 9), torch.zeros(0, dtype=torch.int64), 0)
    assert len(ids) == 0

"""What an operator computes for a token depends on that token alone.

It does not depend on how many others there are, their order, where their zeros are, whether they have a slot,
or how threads share the work.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from backends import EPS, KERNELS, THIN, Backend, in_formats, on, same_bits, threads
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import norm, weights
from torch import Tensor

HIDDEN, NEURONS, ROWS = 200, 333, 100  # no whole tiles; of the neurons about half are active for a token
HEADS, HEAD_DIM, SLOTS, CAPACITY = 3, 40, 5, 300

Run = Callable[[list[int]], Tensor]  # of the tokens with these numbers, in this order

# Some of the tokens in any order, repeated or not, and a number of threads of a CPU.
company = given(
    chosen=st.lists(st.integers(0, 10**6), min_size=1, max_size=40), thread_count=st.sampled_from([1, 2, 3])
)
few_examples = settings(max_examples=2 if THIN else 8, deadline=None)


def check(backend: Backend, tokens: int, run: Run, chosen: list[int], thread_count: int) -> None:
    """Whether the tokens have the bits that each of them has alone."""
    chosen = [number % tokens for number in chosen][: backend.max_tokens]
    schedule = threads(thread_count) if backend.kind == "cpu" else nullcontext()
    with schedule:
        together = run(chosen)
    for number in dict.fromkeys(chosen):
        alone = run([number])[0]
        for place in (place for place, other in enumerate(chosen) if other == number):
            assert same_bits(together[place], alone), f"token {number} in place {place} of {len(chosen)}"


def projection(backend: Backend, fmt: str, operator: str) -> tuple[int, Run]:
    tokens, w = 24, weights(backend, fmt, ROWS, HIDDEN)
    x, b, residual = torch.randn(tokens, HIDDEN) * 3, torch.randn(ROWS), torch.randn(tokens, ROWS)
    gamma, beta = norm(HIDDEN)

    def run(chosen: list[int]) -> Tensor:
        own: dict[str, Any] = {"x": x[chosen], "w": w.values, "scales": w.scales}
        if operator == "linear_residual":
            own |= {"b": b, "residual": residual[chosen]}
        else:
            own |= {"gamma": gamma, "beta": beta, "eps": EPS}
            own |= {"rows": ROWS} if operator == "lm_head" else {"b": b}
        out: Tensor = backend.run(operator, **own)
        return out

    return tokens, run


@in_formats(KERNELS)
@pytest.mark.parametrize("operator", ["layernorm_qkv", "linear_residual", "lm_head"])
def test_products(backend: Backend, fmt: str, operator: str) -> None:
    tokens, run = projection(backend, fmt, operator)

    @few_examples
    @company
    def holds(chosen: list[int], thread_count: int) -> None:
        check(backend, tokens, run, chosen, thread_count)

    holds()


@in_formats(KERNELS)
def test_mlp(backend: Backend, fmt: str) -> None:
    """Some tokens have hardly an active neuron, some nearly all, and some have no slot."""
    tokens, hidden = 24, 272  # rows of whole 16 bytes in every format, and two strips of columns
    gamma, beta = norm(hidden)
    up, down = weights(backend, fmt, NEURONS, hidden), weights(backend, fmt, NEURONS, hidden, "units")
    x, b_down = torch.randn(tokens, hidden), torch.randn(hidden)
    b_up = torch.randn(NEURONS) - 1
    x[::3] *= 30
    gamma[:50] *= 4
    slots = torch.arange(tokens) % 4 - 1

    def run(chosen: list[int]) -> Tensor:
        vectors = {"gamma": gamma, "beta": beta, "eps": EPS, "b_up": b_up, "b_down": b_down, "counts": None}
        matrices = {"w_up": up.values, "up_scales": up.scales}
        matrices |= {"w_down_t": down.values, "down_scales": down.scales}
        out: Tensor = backend.run("mlp", x=x[chosen], **vectors, **matrices, slots=slots[chosen])
        assert torch.equal(out[slots[chosen] < 0], (x + b_down)[chosen][slots[chosen] < 0])
        return out

    @few_examples
    @company
    def holds(chosen: list[int], thread_count: int) -> None:
        check(backend, tokens, run, chosen, thread_count)

    holds()


@on(KERNELS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_decode_attention(backend: Backend, dtype: torch.dtype) -> None:
    tokens = 12
    cache = torch.randn(2, SLOTS, HEADS, CAPACITY, HEAD_DIM).to(dtype)
    q, slots = torch.randn(tokens, HEADS, HEAD_DIM), torch.arange(tokens) % SLOTS
    lengths = torch.tensor([1, 2, 15, 16, 17, 40, 255, 256, 257, 299, 300, 300])

    def run(chosen: list[int]) -> Tensor:
        own = {"q": q[chosen], "slots": slots[chosen], "lengths": lengths[chosen]}
        longest = int(own["lengths"].max())
        out: Tensor = backend.run(
            "decode_attention", **own, cache_layer=cache, longest=longest, scale=HEAD_DIM**-0.5
        )
        return out

    @few_examples
    @company
    def holds(chosen: list[int], thread_count: int) -> None:
        check(backend, tokens, run, chosen, thread_count)

    holds()

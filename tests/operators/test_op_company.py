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
from backends import CUDA, EPS, KERNELS, THIN, Backend, in_formats, on, same_bits, threads
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import norm, weights
from sampled_rows import Rows, Setting
from torch import Tensor

from adept_fast.ops import reference

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


@on(KERNELS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_rotary_append(backend: Backend, dtype: torch.dtype) -> None:
    """q, and what is written of k and v."""
    tokens = 24
    qkv, norms = torch.randn(tokens, 3 * HEADS * HEAD_DIM), (*norm(HEAD_DIM), *norm(HEAD_DIM))
    cos, sin = reference.rotary_table(HEAD_DIM // 2, 10000.0, CAPACITY, torch.device("cpu"))
    slots, positions = torch.arange(tokens) % SLOTS, torch.arange(tokens) * 7
    names = ("q_gamma", "q_beta", "k_gamma", "k_beta")

    def run(chosen: list[int]) -> Tensor:
        chosen, places = list(dict.fromkeys(chosen)), list(map(list(dict.fromkeys(chosen)).index, chosen))
        cache = torch.zeros(2, SLOTS, HEADS, CAPACITY, HEAD_DIM, dtype=dtype)
        where = {"slots": slots[chosen], "positions": positions[chosen], "cache_layer": cache}
        own = {"qkv": qkv[chosen], **dict(zip(names, norms, strict=True)), "eps": EPS, "cos": cos, "sin": sin}
        q: Tensor = backend.run("rotary_append", **own, **where)
        written = cache[:, slots[chosen], :, positions[chosen]].float()  # [tokens, 2, heads, head_dim]
        return torch.cat((q[:, None], written.view(len(chosen), 2, HEADS, HEAD_DIM)), 1)[places]

    @few_examples
    @company
    def holds(chosen: list[int], thread_count: int) -> None:
        check(backend, tokens, run, chosen, thread_count)

    holds()


@on(CUDA)
def test_sample(backend: Backend) -> None:
    tokens = 16
    settings_of = [
        Setting(),
        Setting(0.0),
        Setting(0.7, top_p=0.9),
        Setting(1.5, 40, 0.95, 0.01, 1.3),
        Setting(0.0, frequency=0.5, presence=1.0),
        Setting(0.9, 9, is_biased=True),
    ]
    rows = Rows.of(torch.randn(tokens, 3000) * 3, [settings_of[token % 6] for token in range(tokens)])

    def run(chosen: list[int]) -> Tensor:
        return rows.only(chosen).sampled(backend)[0][:, None]

    @few_examples
    @company
    def holds(chosen: list[int], thread_count: int) -> None:
        check(backend, tokens, run, chosen[:16], thread_count)

    holds()

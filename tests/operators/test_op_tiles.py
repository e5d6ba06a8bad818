"""Products of matrices in tiles have the bits of the same products row by row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from backends import CUDA, EMULATED, EPS, THIN, Backend, parameter, same_bits
from matrices import in_tiles, norm, weights

# tokens, inputs, rows: part chunks and stages, an odd and an even number of stages, tiles that blocks share
# out unevenly, tokens of both tiles, inputs that a kernel of its own prepares
SHAPES = [(1, 64, 17), (2, 136, 33), (1, 1160, 300), (5, 584, 50), (9, 2056, 40), (16, 2200, 65)]
if THIN:
    SHAPES = [(1, 136, 33), (3, 1160, 50), (9, 72, 33)]
CASES = [
    parameter(one, fmt, shape, name=f"{fmt}-{'x'.join(map(str, shape))}")
    for one in CUDA
    for fmt in one.formats
    for shape in SHAPES
]


def variants(backend: Backend) -> Iterator[AbstractContextManager[object]]:
    """Orders of threads, sizes of the device, and copies as devices of capability 8 make them."""
    yield nullcontext()
    if backend is not EMULATED:
        return
    from cuda_on_cpu import library

    yield from backend.schedules()
    yield library.multiprocessors(3)
    yield library.without_bulk_copies()


@pytest.mark.parametrize(("backend", "fmt", "shape"), CASES, indirect=["backend"])
def test_a_product_has_the_bits_of_rows(backend: Backend, fmt: str, shape: tuple[int, int, int]) -> None:
    tokens, columns, rows = shape
    w = weights(backend, fmt, rows, columns)
    values, scales = in_tiles(w)
    x, b, residual = torch.randn(tokens, columns) * 3 + 1, torch.randn(rows), torch.randn(tokens, rows)
    gamma, beta = norm(columns)
    for operator, arguments in (
        ("layernorm_qkv", {"x": x, "gamma": gamma, "beta": beta, "eps": EPS, "b": b}),
        ("linear_residual", {"x": x, "b": b, "residual": residual}),
    ):
        expected = backend.run(operator, **arguments, w=w.values, scales=w.scales)
        for variant in variants(backend):
            with variant:
                out = backend.run(operator, **arguments, w=values, scales=scales)
            assert same_bits(out, expected), operator

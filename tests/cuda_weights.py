"""Weights for tests of the CUDA products, in each format, and what a product of them may be off by.

Matrices are packed here by the format's definition, and not by the package.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from cuda_place import Place
from torch import Tensor

FLOATS = {"float16": torch.float16, "bfloat16": torch.bfloat16}
FORMATS = (*FLOATS, "int8", "fp8", "int4")
GROUP = 128  # weights in 4 bits that share a scale
EPS = 1e-5
EPS32 = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Weights:
    """A matrix [rows, columns] in one format, and the float64 matrix that it stands for."""

    values: Tensor
    scales: Tensor | None
    exact: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """In which products with it are computed."""
        return self.values.dtype if self.scales is None else torch.float16

    def parts(self, place: Place) -> tuple[Tensor, Tensor | None]:
        scales = None if self.scales is None else surrounded(self.scales.to(place.device))
        return surrounded(self.values.to(place.device)), scales


def surrounded(tensor: Tensor) -> Tensor:
    """The same in the middle of memory that is all NaN, or in bytes all ones: nothing of it may matter."""
    margin = 4096
    nbytes = tensor.numel() * tensor.element_size()
    memory = torch.full((margin + nbytes + margin,), 0xFF, dtype=torch.uint8, device=tensor.device)
    middle = memory[margin : margin + nbytes].view(tensor.dtype).view(tensor.shape)
    return middle.copy_(tensor)


def weights(fmt: str, rows: int, columns: int, layout: Literal["rows", "units"] = "rows") -> Weights:
    """Random ones, such that a product with inputs near 1 is near 1."""
    fan_in = columns if layout == "rows" else rows
    drawn = torch.randn(rows, columns) / fan_in**0.5
    if fmt in FLOATS:
        values = drawn.to(FLOATS[fmt])
        return Weights(values, None, values.double())
    if fmt == "int8":
        inputs = 1 if layout == "rows" else 0
        scales = drawn.abs().amax(inputs, keepdim=True).clamp(min=1e-6) / 127
        bytes_ = (drawn / scales).round().to(torch.int8)
        bytes_.flatten()[::7] = -128  # which any file may hold
        return Weights(bytes_, scales.flatten(), bytes_.double() * scales.double())
    if fmt == "fp8":
        inputs = 1 if layout == "rows" else 0
        scales = drawn.abs().amax(inputs, keepdim=True).clamp(min=1e-6) / 448
        bytes_ = (drawn / scales).to(torch.float8_e4m3fn)
        return Weights(bytes_, scales.flatten(), bytes_.double() * scales.double())
    groups = -(-columns // GROUP)
    nibbles = torch.randint(0, 16, (rows, groups * GROUP))
    nibbles[:, columns:] = 8
    scales = ((torch.rand(rows, groups) - 0.5) / fan_in**0.5).half()
    exact = (nibbles - 8).double() * scales.double().repeat_interleave(GROUP, 1)
    return Weights(packed_nibbles(nibbles), scales, exact[:, :columns])


def packed_nibbles(nibbles: Tensor) -> Tensor:
    """Of each 8, the i-th pair at bits 4 i and 16 + 4 i of a word: uint8 [rows, columns / 2]."""
    eights = nibbles.view(len(nibbles), -1, 4, 2)  # [rows, words, pair, first or second]
    shifts = 4 * torch.arange(4)[:, None] + torch.tensor([0, 16])
    words = (eights << shifts).sum((2, 3))  # [rows, words]
    return (words[..., None] >> torch.tensor([0, 8, 16, 24]) & 255).to(torch.uint8).flatten(1)


def norm(size: int) -> tuple[Tensor, Tensor]:
    """gamma and beta."""
    return 1 + 0.2 * torch.randn(size), 0.1 * torch.randn(size)


def layernorm64(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    x = x.double()
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + EPS).sqrt() * gamma.double() + beta.double()


def torch_product(x: Tensor, w: Weights) -> Tensor:
    """x · wᵀ as torch's tensor cores compute it: inputs and result in the dtype, sums in float32."""
    widened = [one.to(w.dtype).float() for one in (x, w.exact)]
    return (widened[0] @ widened[1].T).to(w.dtype).float()


def rounding(x: Tensor, w: Tensor, dtype: torch.dtype) -> Tensor:
    """What rounding of inputs to the dtype, and of sums to float32, can do to x · wᵀ, from the exact ones."""
    terms = x.abs() @ w.abs().T  # [tokens, rows]
    return terms * (torch.finfo(dtype).eps / 2 + 32 * EPS32)


def assert_close(
    ours: Tensor, exact: Tensor, bound: Tensor, torchs: Tensor, roundings: int | None = None
) -> None:
    """Each within its bound, and all together not twice as far off as torch in the same dtype.

    The latter where luck plays no part: where the result depends on many ``roundings``, by default as many as
    it has elements.
    """
    off = (ours.double().cpu() - exact).abs()
    assert ours.dtype == torch.float32
    assert ours.shape == exact.shape
    assert bool((off <= bound).all()), f"off by {(off / bound).max():.3g} times what rounding can do"
    if min(exact.numel(), exact.numel() if roundings is None else roundings) >= 100:
        rms, rms_of_torch = (error.square().mean().sqrt() for error in (off, torchs.double() - exact))
        floor = 4 * EPS32 * exact.square().mean().sqrt()
        assert rms <= 2 * rms_of_torch + floor, f"{rms:.3g} in the mean; torch {rms_of_torch:.3g}"


@contextmanager
def another_order(place: Place, name: str) -> Iterator[None]:
    """In the emulator, threads and blocks in the order of that name; on a GPU in whichever comes."""
    with ExitStack() as stack:
        if place.name == "emulated":
            from cuda_on_cpu import library

            stack.enter_context(library.order(name))
        yield


@contextmanager
def multiprocessors(place: Place, count: int) -> Iterator[None]:
    """In the emulator, a device of that size; a GPU is as large as it is."""
    with ExitStack() as stack:
        if place.name == "emulated":
            from cuda_on_cpu import library

            stack.enter_context(library.multiprocessors(count))
        yield

"""Weights for tests of products, in each backend's formats, and how far off a product of them may be.

Packed weights of a CPU come from the package, whose packing is tested against its definition elsewhere; those
of a GPU are packed here by the format's definition.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from backends import EPS, FLOATS, Backend
from closeness import assert_close
from torch import Tensor

from adept_fast.quantization.formats import FORMATS, NAMES, MatrixSpec, float_format
from adept_fast.quantization.layout_cpu import TiledMatrix
from adept_fast.quantization.layout_gpu import GpuMatrix
from adept_fast.quantization.layout_gpu_tiles import GpuFloatTiles, GpuTiles
from adept_fast.quantization.matrix import Matrix, QuantizedMatrix, first_rows, parts_of, quantize, repack

EPS32 = torch.finfo(torch.float32).eps
GROUPS = {"cpu": 32, "cuda": 128}  # weights in 4 bits that share a scale
OF_A_CPU = {"int8": FORMATS["int8"], "int4": FORMATS["int4-g32"]}
STEP = 1 / (
    127 * 256
)  # of a CPU's fixed-point input beside packed weights, as a share of its token's largest

Layout = Literal["rows", "units"]


@dataclass(frozen=True, eq=False)
class Weights:
    """A matrix [rows, columns] in one format, and the float64 matrix that it stands for."""

    fmt: str
    family: str  # of backends that read it
    values: Tensor
    scales: Tensor | None
    exact: Tensor
    matrix: Matrix | None = None  # as the package has it, of a CPU's formats

    @property
    def parts(self) -> tuple[Tensor, Tensor | None]:
        return self.values, self.scales

    @property
    def in_fixed_point(self) -> bool:
        """Whether a CPU puts the inputs of its products into fixed point."""
        return self.family == "cpu" and self.scales is not None

    @property
    def scales_weights(self) -> bool:
        """Whether a GPU's product that runs along rows multiplies each weight by its scale, not their sum."""
        return self.family == "cuda" and self.fmt == "int4-g32"

    def first_rows(self, count: int) -> Weights:
        if self.matrix is not None:
            return _of_a_cpu(self.fmt, first_rows(self.matrix, count))
        scales = None if self.scales is None else self.scales[:count]
        return replace(self, values=self.values[:count], scales=scales, exact=self.exact[:count])


def weights(
    backend: Backend, fmt: str, rows: int, columns: int, layout: Layout = "rows", fan_in: int = 0
) -> Weights:
    """Random, such that a product with inputs near 1 is near 1; the same for all backends of a family."""
    return _weights(backend.family, fmt, rows, columns, layout, fan_in)


@functools.lru_cache(maxsize=1024)
def _weights(family: str, fmt: str, rows: int, columns: int, layout: Layout, fan_in: int) -> Weights:
    generator = torch.Generator().manual_seed(rows * 7919 + columns)
    fan_in = fan_in or (columns if layout == "rows" else rows)
    drawn = torch.randn(rows, columns, generator=generator) / fan_in**0.5
    packed = _packed(family, fmt, drawn, layout)
    if (family, fmt) != ("cuda", "int8"):
        return packed
    packed.values.flatten()[::7] = -128  # which no rounding gives, and any file may hold
    assert packed.scales is not None
    scales = packed.scales[:, None] if layout == "rows" else packed.scales
    return replace(packed, exact=packed.values.double() * scales.double())


def weights_of(backend: Backend, fmt: str, values: Tensor, layout: Layout = "rows") -> Weights:
    return _packed(backend.family, fmt, values, layout)


def _packed(family: str, fmt: str, values: Tensor, layout: Layout) -> Weights:
    if fmt in FLOATS:
        narrow = values.to(FLOATS[fmt])
        return Weights(fmt, family, narrow, None, narrow.double(), narrow if family == "cpu" else None)
    if family == "cpu":
        return _of_a_cpu(fmt, tiled(fmt, values, layout))
    if fmt in ("int8", "fp8"):
        inputs = 1 if layout == "rows" else 0
        largest = values.abs().amax(inputs, keepdim=True).clamp(min=1e-6)
        scales = largest / (127 if fmt == "int8" else 448)
        if fmt == "int8":
            bytes_ = (values / scales).round().to(torch.int8)
        else:
            bytes_ = (values / scales).to(torch.float8_e4m3fn)
        return Weights(fmt, "cuda", bytes_, scales.flatten(), bytes_.double() * scales.double())
    return _in_nibbles(fmt, values)


def tiled(fmt: str, values: Tensor, layout: Layout = "rows") -> TiledMatrix:
    """Packed for the kernels of a CPU, in the layout of units transposed."""
    spec = MatrixSpec(OF_A_CPU[fmt], (values.shape[0], values.shape[1]), layout == "units")
    return quantize(values, spec, TiledMatrix)


def _of_a_cpu(fmt: str, matrix: Matrix) -> Weights:
    exact: Tensor | QuantizedMatrix = matrix
    if isinstance(matrix, QuantizedMatrix):
        exact = matrix.rounded(0, matrix.shape[0]).weights(torch.float64)[:, : matrix.shape[1]]
    assert isinstance(exact, Tensor)
    return Weights(fmt, "cpu", *parts_of(matrix), exact.double(), matrix)


def _in_nibbles(fmt: str, values: Tensor) -> Weights:
    """A GPU's 4 bits: (nibble - 8) times the scale of a group, which may be negative."""
    (rows, columns), group = values.shape, 32 if fmt == "int4-g32" else GROUPS["cuda"]
    groups = -(-columns // group)
    padded = F.pad(values, (0, groups * group - columns)).view(rows, groups, group)
    signs = 1 - 2.0 * (torch.arange(groups) % 2)
    scales = (padded.abs().amax(-1) / 7.5 * signs).half()  # [rows, groups]
    per_weight = torch.where(scales == 0, 1, scales.float())[..., None]
    quantized = (padded / per_weight).round().clamp(-8, 7).view(rows, -1)
    exact = quantized.double() * scales.double().repeat_interleave(group, 1)
    return Weights(fmt, "cuda", packed_nibbles(quantized.long() + 8), scales, exact[:, :columns])


def packed_nibbles(nibbles: Tensor) -> Tensor:
    """Of each 8, the i-th pair at bits 4 i and 16 + 4 i of a word: uint8 [rows, columns / 2]."""
    eights = nibbles.view(len(nibbles), -1, 4, 2)  # [rows, words, pair, first or second]
    shifts = 4 * torch.arange(4)[:, None] + torch.tensor([0, 16])
    words = (eights << shifts).sum((2, 3))  # [rows, words]
    return (words[..., None] >> torch.tensor([0, 8, 16, 24]) & 255).to(torch.uint8).flatten(1)


def norm(size: int) -> tuple[Tensor, Tensor]:
    """gamma and beta."""
    return 1 + 0.2 * torch.randn(size), 0.1 * torch.randn(size)


def layernorm64(x: Tensor, gamma: Tensor, beta: Tensor, eps: float = EPS) -> Tensor:
    x = x.double()
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * gamma.double() + beta.double()


def layernorm32(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return F.layer_norm(x.float(), gamma.shape, gamma, beta, EPS)


def torch_product(x: Tensor, exact: Tensor, dtype: torch.dtype, family: str) -> Tensor:
    """x · wᵀ as torch computes it: inputs rounded to the dtype, on a GPU weights and result too; float32."""
    if family == "cpu":
        return F.linear(x.to(dtype).float(), exact.float())
    return F.linear(x.to(dtype).float(), exact.to(dtype).float()).to(dtype).float()


def product_bound(
    x: Tensor, w: Tensor, dtype: torch.dtype, in_fixed_point: bool = False, scaled_weights: bool = False
) -> Tensor:
    """How far off x · wᵀ may be, [tokens, rows], by rounding of inputs, of sums in float32, and with
    ``scaled_weights`` of each weight times its scale."""
    terms = x.double().abs() @ w.abs().T
    if in_fixed_point:
        steps = x.double().abs().amax(-1, keepdim=True) * STEP
        return steps / 2 * w.abs().sum(1) + 8 * EPS32 * terms
    roundings = 2 if scaled_weights else 1
    return terms * (roundings * torch.finfo(dtype).eps / 2 + 32 * EPS32)


@dataclass(frozen=True)
class Expected:
    """A product's exact result, torch's, and what a kernel's may be off by."""

    exact: Tensor
    torchs: Tensor
    size: Tensor  # of the sums, as closeness.assert_close takes it
    bound: Tensor  # of each element
    inputs: torch.dtype  # to which terms may be rounded
    roundings: int | None = None  # that decide the error; None: as many as there are elements
    strict: bool = False  # in the mean at most twice torch's error, where luck plays no part

    def check(self, ours: Tensor, what: object) -> None:
        assert ours.dtype == self.torchs.dtype, what
        assert_close(ours, self.exact, self.torchs, self.size, what, self.inputs)
        assert_within(ours, self.exact, self.bound, what)
        count = ours.numel() if self.roundings is None else min(ours.numel(), self.roundings)
        if self.strict and count >= 100:
            off, off_of_torch = (
                float((one.double() - self.exact).square().mean().sqrt()) for one in (ours, self.torchs)
            )
            floor = 4 * EPS32 * float(self.exact.square().mean().sqrt())
            assert off <= 2 * off_of_torch + floor, f"{what}: {off:.3g} in the mean; torch {off_of_torch:.3g}"


def assert_within(ours: Tensor, exact: Tensor, bound: Tensor, what: object) -> None:
    if not exact.numel():
        return
    off = (ours.double() - exact).abs()
    past = (~(off <= bound)).nonzero()
    assert not len(past), (
        f"{what}: off by {off[tuple(past[0])]:.3g} at {past[0].tolist()}, more than rounding can do"
    )


def in_tiles(w: Weights, layout: Layout = "rows") -> tuple[Tensor, Tensor | None]:
    """A GPU's matrix as kernels take it in tiles, or in strips: values, and scales in 8 bits."""
    if w.scales is None:
        spec = MatrixSpec(
            float_format(w.values.dtype), (w.exact.shape[0], w.exact.shape[1]), layout == "units"
        )
        return GpuFloatTiles.pack(w.values, spec, w.values.device).parts
    spec = MatrixSpec(NAMES[w.fmt], (w.exact.shape[0], w.exact.shape[1]), layout == "units")
    return repack(GpuMatrix(w.values, w.scales, spec), GpuTiles, w.values.device).parts

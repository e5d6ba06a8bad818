"""What tests of the native operators share: operands, what they stand for in float64, and instruction sets.

Importing this skips the module that does where the extension is not loaded; that it is loaded wherever it can
be built, test_native_sanitized.py says.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adept_fast import extension
from adept_fast.quantization.formats import FORMATS as WEIGHT_FORMATS
from adept_fast.quantization.formats import MatrixSpec
from adept_fast.quantization.layout_cpu import TiledMatrix
from adept_fast.quantization.matrix import Matrix, QuantizedMatrix, quantize
from adept_fast.quantization.matrix import parts_of as parts

if not extension.load().loaded:
    pytest.skip(f"the extension is not loaded: {extension.load().reason}", allow_module_level=True)

from adept_fast import _C

call = torch.ops.adept_fast

Layout = Literal["rows", "units"]

EPS = 1e-5
FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PACKED = {"int8": "int8", "int4": "int4-g32"}
FORMATS = (*FLOATS, *PACKED)
INSTRUCTION_SETS = _C.runnable_instruction_sets().split(",")  # the best first
STEP = 1 / (127 * 256)  # of a fixed-point input, as a share of its token's largest
EPS32 = torch.finfo(torch.float32).eps

# Under sanitizers every kernel is some ten times slower, and few shapes reach every branch.
THIN = os.environ.get("ADEPT_FAST_TESTS") == "thin"

every_set = pytest.mark.parametrize("isa", INSTRUCTION_SETS)
every_format = pytest.mark.parametrize("fmt", FORMATS)


@pytest.fixture(autouse=True)
def settled() -> Iterator[None]:
    """The same random numbers for every test, and one thread, but where a test sets more."""
    torch.manual_seed(0)
    with threads(1):
        yield


@contextmanager
def using(isa: str) -> Iterator[None]:
    """Run the kernels of one instruction set."""
    before = _C.instruction_set()
    assert _C.use_instruction_set(isa)
    try:
        yield
    finally:
        _C.use_instruction_set(before)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Weights:
    """A matrix in one format, and the float64 matrix that it stands for."""

    matrix: Matrix
    exact: Tensor

    @property
    def parts(self) -> tuple[Tensor, Tensor | None]:
        return parts(self.matrix)

    @property
    def is_packed(self) -> bool:
        return isinstance(self.matrix, QuantizedMatrix)


@functools.lru_cache(maxsize=256)
def weights(fmt: str, rows: int, columns: int, layout: Layout = "rows", fan_in: int = 0) -> Weights:
    """Random weights such that a product with inputs near 1 is near 1."""
    generator = torch.Generator().manual_seed(rows * 7919 + columns)
    values = torch.randn(rows, columns, generator=generator) / (fan_in or columns) ** 0.5
    return weights_of(fmt, values, layout)


def weights_of(fmt: str, values: Tensor, layout: Layout = "rows") -> Weights:
    if fmt in FLOATS:
        matrix = values.to(FLOATS[fmt])
        return Weights(matrix, matrix.double())
    packed = tiled(fmt, values, layout)
    return Weights(packed, exact_of(packed))


def tiled(fmt: str, values: Tensor, layout: Layout = "rows") -> TiledMatrix:
    """Packed for the kernels of a CPU, in the \"units\" layout transposed."""
    spec = MatrixSpec(WEIGHT_FORMATS[PACKED[fmt]], (values.shape[0], values.shape[1]), layout == "units")
    return quantize(values, spec, TiledMatrix)


def exact_of(packed: QuantizedMatrix) -> Tensor:
    """The float64 matrix."""
    return packed.rounded(0, packed.shape[0]).weights(torch.float64)[:, : packed.shape[1]]


def norm(size: int) -> tuple[Tensor, Tensor]:
    """gamma and beta."""
    return 1 + 0.2 * torch.randn(size), 0.1 * torch.randn(size)


def layernorm64(x: Tensor, gamma: Tensor, beta: Tensor, eps: float = EPS) -> Tensor:
    x = x.double()
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * gamma.double() + beta.double()


def layernorm32(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return F.layer_norm(x.float(), gamma.shape, gamma, beta, EPS)


def as_inputs(x: Tensor, fmt: str) -> Tensor:
    """Float32 inputs as the torch that is compared with has them: beside packed weights, in bfloat16."""
    return x.bfloat16().float() if fmt in PACKED else x


def input_dtype(fmt: str) -> torch.dtype:
    """To which ``as_inputs`` rounds."""
    return torch.bfloat16 if fmt in PACKED else torch.float32


def fixed_point_error(inputs: Tensor, exact: Tensor) -> Tensor:
    """How far off a product of these inputs, in fixed point, with [out, in] weights may be at most."""
    steps = inputs.double().abs().amax(-1, keepdim=True) * STEP
    rounding = 8 * EPS32 * (inputs.double().abs() @ exact.abs().T)
    return steps / 2 * exact.abs().sum(1) + rounding


def assert_within(ours: Tensor, exact: Tensor, bound: Tensor, what: object = "") -> None:
    off = (ours.double() - exact).abs() - bound
    assert off.max() <= 0, (
        f"{what}: {off.max():.3g} past the bound at {divmod(int(off.argmax()), off.shape[1])}"
    )


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are the same, NaNs too."""
    return first.dtype == second.dtype and torch.equal(
        first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8)
    )

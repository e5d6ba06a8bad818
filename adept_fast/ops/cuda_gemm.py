"""On an NVIDIA GPU: products by torch's GEMM, for prompts and what the kernels of decode steps do not take.

A layer is a few launches: a kernel prepares the rows of a GEMM (LayerNorm, rounding), another finishes them
(bias, relu², residual sum), and weights that are packed or in tiles are widened block by block; without the
extension, plain PyTorch does the same. A GEMM takes its rows in tiles (``row_tiles.py``), so that a token's
bits do not depend on the other rows. Inputs and weights are rounded to the matrix's product dtype, sums are
float32.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ContextDecorator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from adept_fast.ops import cuda, kernels, optional, reference, rows
from adept_fast.ops.row_tiles import Product, in_tiles, tiles_of
from adept_fast.quantization.layout_gpu import GpuMatrix
from adept_fast.quantization.layout_gpu_tiles import GpuFloatTiles, GpuTiles
from adept_fast.quantization.matrix import Matrix

MAX_COLUMNS = 32768  # that the kernels prepare
_BLOCK_ELEMENTS = 1 << 24  # 32 MB in 16 bits: a GEMM reads a widened block from the second-level cache
_BLOCK_ROWS = 64  # blocks begin at multiples of this, so that cuBLAS gets aligned rows and columns
DEQUANTIZING_BYTES = 6 * _BLOCK_ELEMENTS  # for a block of 4 bits, at once: its bytes twice, floats twice


class _Rows(NamedTuple):
    """What prepares and finishes the rows of a GEMM: the kernels', or plain PyTorch's functions."""

    prepare: Callable[..., tuple[Tensor, Tensor]]
    activate: Callable[..., tuple[Tensor, Tensor]]
    finish: Callable[..., Tensor]


_PLAIN = _Rows(rows.prepare_rows, rows.activate_rows, rows.finish_rows)


def _rows_of(device: torch.device, columns: int = 0) -> _Rows:
    """For rows to prepare with so many columns; rows to finish may have any number."""
    if columns % cuda.VECTOR or columns > MAX_COLUMNS or cuda.unavailable(device) is not None:
        return _PLAIN
    by = kernels.operators
    return _Rows(by.prepare_rows, by.activate_rows, by.finish_rows)


_Widened = (GpuMatrix, GpuTiles, GpuFloatTiles)  # matrices that a GEMM cannot take as they are


class _Factor(NamedTuple):
    """A matrix as a GEMM takes it: x · wᵀ, or x · w if ``transposed``."""

    matrix: Matrix
    transposed: bool

    @property
    def outputs(self) -> int:
        return self.matrix.shape[1 if self.transposed else 0]

    @property
    def inputs(self) -> int:
        return self.matrix.shape[0 if self.transposed else 1]

    @property
    def dtype(self) -> torch.dtype:
        """Of inputs and product."""
        if isinstance(self.matrix, _Widened):
            return self.matrix.spec.product_dtype
        return self.matrix.dtype if isinstance(self.matrix, Tensor) else torch.float32

    @property
    def raised(self) -> int:
        """How many powers of two inputs are divided by so that no sum of 8-bit weights exceeds 2¹⁵."""
        if not isinstance(self.matrix, (GpuMatrix, GpuTiles)) or self.matrix.bits != 8:
            return 0
        return max(0, int(self.inputs * self.matrix.spec.format.max_value).bit_length() - 15)

    @property
    def scales(self) -> Tensor | None:
        """Of outputs, which the product does not have yet."""
        if isinstance(self.matrix, (GpuMatrix, GpuTiles)) and self.matrix.bits == 8:
            return self.matrix.scales
        return None

    @property
    def product(self) -> Product:
        if isinstance(self.matrix, _Widened):
            return _multiply_widened_transposed if self.transposed else _multiply_widened
        return _multiply_transposed if self.transposed else _multiply


def _multiply(x: Tensor, w: Matrix) -> Tensor:
    return F.linear(x, w) if isinstance(w, Tensor) else reference.project(x, w)


def _multiply_transposed(x: Tensor, w_t: Matrix) -> Tensor:
    return x @ w_t if isinstance(w_t, Tensor) else reference.project_transposed(x, w_t)


def _multiply_widened(x: Tensor, w: Matrix) -> Tensor:
    out = x.new_empty(len(x), w.shape[0])
    for block in _blocks(w):
        torch.mm(x, _widened(w, block).T, out=out[:, block])
    return out


def _multiply_widened_transposed(x: Tensor, w_t: Matrix) -> Tensor:
    """A part of the sums for each block: [parts, rows, outputs]."""
    blocks = list(_blocks(w_t))
    out = x.new_empty(len(blocks), len(x), w_t.shape[1])
    for part, block in zip(out, blocks, strict=True):
        torch.mm(x[:, block], _widened(w_t, block), out=part)
    return out


def _blocks(w: Matrix) -> Iterator[slice]:
    step = max(1, _BLOCK_ELEMENTS // max(1, w.shape[1]))
    step -= step % _BLOCK_ROWS if step > _BLOCK_ROWS else 0
    for start in range(0, w.shape[0], step):
        yield slice(start, min(start + step, w.shape[0]))


def _widened(w: Matrix, block: slice) -> Tensor:
    """Rows of a matrix row by row in its product dtype, in 8 bits without the scales of outputs."""
    assert isinstance(w, _Widened)
    at, dtype = (block.start, block.stop), w.spec.product_dtype
    if w.shape[1] % cuda.VECTOR or cuda.unavailable(w.device) is not None:
        return w.unscaled(*at, dtype)
    widened: Tensor = kernels.operators.widen(*w.parts, w.shape[1], *at, dtype)
    return widened


_NARROW_SUMS = (
    "allow_fp16_accumulation",
    "allow_fp16_reduced_precision_reduction",
    "allow_bf16_reduced_precision_reduction",
)


class _SumsInFloat32(ContextDecorator):
    """While a thread is in it, cuBLAS adds up products of 16 bits in float32, and parts of a sum too.

    torch's settings are those of the process: the first to enter changes them, the last restores them. So it
    is cheap around one product inside of many.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._allowed: list[str] = []

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                settings: Any = torch.backends.cuda.matmul
                self._allowed = [name for name in _NARROW_SUMS if getattr(settings, name)]
                for name in self._allowed:
                    setattr(settings, name, False)
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                for name in self._allowed:
                    setattr(torch.backends.cuda.matmul, name, True)


sums_in_float32 = _SumsInFloat32()
Norm = tuple[Tensor, Tensor, float]  # gamma, beta and eps


class CudaGemm:
    """``ops/reference.py``'s operators by torch's GEMM.

    Args:
        few: as ``row_tiles.tiles_of`` takes it.
    """

    def __init__(self, few: int = 0) -> None:
        self._few = few

    def layernorm_qkv(
        self, x: Tensor, gamma: Tensor, beta: Tensor, eps: float, w: Matrix, b: Tensor
    ) -> Tensor:
        return self._project(x, _Factor(w, False), (gamma, beta, eps), b)

    def linear_residual(self, x: Tensor, w: Matrix, b: Tensor, residual: Tensor) -> Tensor:
        return self._project(x, _Factor(w, False), None, b, residual)

    def lm_head(self, x: Tensor, gamma: Tensor, beta: Tensor, eps: float, w: Matrix) -> Tensor:
        return self._project(x, _Factor(w, False), (gamma, beta, eps))

    def project(self, x: Tensor, w: Matrix) -> Tensor:
        """x · wᵀ: float32 [tokens, out], for w of [out, in]."""
        return self._project(x, _Factor(w, False), None)

    def project_transposed(self, x: Tensor, w_t: Matrix) -> Tensor:
        """x · w_t: float32 [tokens, out], for w_t of [in, out]."""
        return self._project(x, _Factor(w_t, True), None)

    @sums_in_float32
    def mlp(
        self,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        eps: float,
        w_up: Matrix,
        b_up: Tensor,
        w_down_t: Matrix,
        b_down: Tensor,
        counts: Tensor | None,
        slots: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        up, down = _Factor(w_up, False), _Factor(w_down_t, True)
        by = _rows_of(x.device, down.inputs)
        product, powers = self._product(x, up, (gamma, beta, eps))
        tiles = self._tiles(x, down)
        if counts is None and slots is None and up.dtype == down.dtype != torch.float32:
            narrow, powers = by.activate(product, powers, up.scales, b_up, down.raised, sum(tiles))
        else:
            activations = by.finish(product, powers, up.scales, b_up, True, None)
            if slots is not None:
                activations.masked_fill_((slots < 0)[:, None], 0)
            if counts is not None:
                reference.count_active(activations, counts)
            narrow, powers = by.prepare(activations, None, None, 0.0, down.raised, sum(tiles), down.dtype)
        product = in_tiles(down.product, narrow, down.matrix, tiles)
        added = x if residual is None else residual
        return _rows_of(x.device).finish(product, powers, down.scales, b_down, False, added)

    @sums_in_float32
    def _project(
        self,
        x: Tensor,
        w: _Factor,
        norm: Norm | None,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        product, powers = self._product(x, w, norm)
        return _rows_of(x.device).finish(product, powers, w.scales, bias, False, residual)

    def _product(self, x: Tensor, w: _Factor, norm: Norm | None) -> tuple[Tensor, Tensor]:
        """Sums of products as ``finish_rows`` takes them, and the powers of the tokens."""
        tiles = self._tiles(x, w)
        gamma, beta, eps = norm or (None, None, 0.0)
        if norm is not None and optional.apex_layer_norm(x.device).used:
            x, gamma, beta = optional.layer_norm(x, *norm), None, None
        by = _rows_of(x.device, w.inputs)
        narrow, powers = by.prepare(x, gamma, beta, eps, w.raised, sum(tiles), w.dtype)
        return in_tiles(w.product, narrow, w.matrix, tiles), powers

    def _tiles(self, x: Tensor, w: _Factor) -> list[int]:
        return tiles_of(w.product, len(x), w.matrix, w.outputs, (w.inputs, w.dtype), self._few)


# Of decode steps that the kernels do not take, and of prompts, whose tokens have one order, few or many.
gemm = CudaGemm(few=cuda.MAX_TOKENS)
prefill_gemm = CudaGemm()

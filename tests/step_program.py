"""The step that benchmarks/step computes, in plain PyTorch on the numbers that it fills its model with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from step_bytes import Shapes, head_format
from torch import Tensor

from adept_fast.ops import reference
from adept_fast.quantization.formats import FORMATS, MatrixSpec
from adept_fast.quantization.layout_gpu import GpuMatrix
from adept_fast.quantization.matrix import Matrix

EPS = 1e-5
FAR = 10.0  # where the biases of active units lie, and the negative of it for the others


def hashes(count: int, seed: int) -> np.ndarray:
    """uint32 [count], as fill.h says."""
    h = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(seed * 0x85EBCA77 % 2**32)
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x2C1B3C6D)
    h ^= h >> np.uint32(12)
    h *= np.uint32(0x297A2D39)
    return h ^ h >> np.uint32(15)


def line(shape: tuple[int, ...], mean: float, size: float, seed: int) -> Tensor:
    """float32, evenly spread about the mean."""
    unit = (hashes(math.prod(shape), seed) >> np.uint32(16)).astype(np.float32) / np.float32(32768) - 1
    return torch.from_numpy(np.float32(mean) + np.float32(size) * unit.astype(np.float32)).view(shape)


def matrix(fmt: str, rows: int, cols: int, layout: str, size: float, seed: int) -> Matrix:
    """Such that outputs are near ``size``."""
    outputs, inputs = (rows, cols) if layout == "rows" else (cols, rows)
    size /= inputs**0.5
    if fmt == "float16":
        return line((rows, cols), 0, size / 0.57735, seed).half()
    if fmt == "fp8":
        h = hashes(rows * cols, seed)
        values = (h >> np.uint32(24) & np.uint32(0x80)) | (0x28 + (h >> np.uint32(16) & np.uint32(15)))
        packed = torch.from_numpy(values.astype(np.uint8)).view(torch.float8_e4m3fn).view(rows, cols)
        mean = size / 0.555
        spec = MatrixSpec(FORMATS["fp8"], (rows, cols), layout == "units")
        return GpuMatrix(packed, line((outputs,), mean, 0.25 * mean, seed + 1), spec)
    nibbles = (hashes(rows * cols // 2, seed) >> np.uint32(24)).astype(np.uint8)
    mean = size / 4.61
    scales = line((rows, cols // 128), mean, 0.25 * mean, seed + 1).half()
    spec = MatrixSpec(FORMATS["int4-g128"], (rows, cols), layout == "units")
    return GpuMatrix(torch.from_numpy(nibbles).view(rows, cols // 2), scales, spec)


def active_units(count: int, sparsity_percent: int, seed: int) -> Tensor:
    """bool [count]: the first of a permutation."""
    order = list(range(count))
    h = hashes(count, seed).tolist()
    for i in range(count - 1, 0, -1):
        j = h[i] % (i + 1)
        order[i], order[j] = order[j], order[i]
    active = torch.zeros(count, dtype=torch.bool)
    active[order[: (count * (100 - sparsity_percent) + 50) // 100]] = True
    return active


@dataclass(frozen=True)
class Step:
    """A setting of the program's case ``step``."""

    format: str
    sparsity_percent: int
    tokens: int
    positions: int

    def logits(self, shapes: Shapes) -> Tensor:
        """float32 [tokens, vocab], of the ids 0, 1, … on caches that are full."""
        head_seed = 100 * shapes.layers
        table = line((self.tokens, shapes.hidden), 0, 1, head_seed + 4).half()
        x = reference.embed(table, torch.arange(self.tokens))
        rotary = reference.rotary_table(shapes.rotary, 25000.0, self.positions, torch.device("cpu"))
        for layer in range(shapes.layers):
            x = self._layer(x, shapes, rotary, 100 * layer)
        w = matrix(head_format(self.format), shapes.vocab, shapes.hidden, "rows", 1, head_seed + 2)
        return reference.lm_head(x, *norm(shapes.hidden, head_seed), EPS, w)

    def _layer(self, x: Tensor, shapes: Shapes, rotary: tuple[Tensor, Tensor], seed: int) -> Tensor:
        hidden, units, head_dim = shapes.hidden, shapes.intermediate, shapes.head_dim
        slots = torch.arange(self.tokens)
        lengths = torch.full((self.tokens,), self.positions)

        def weights(rows: int, at: int, layout: str = "rows", size: float = 1.0) -> Matrix:
            return matrix(self.format, rows, hidden, layout, size, seed + at)

        def bias(count: int, at: int) -> Tensor:
            return line((count,), 0, 0.5, seed + at)

        cache = line((2, self.tokens, shapes.heads, self.positions, head_dim), 0, 1, seed + 20).half()
        qkv = reference.layernorm_qkv(
            x, *norm(hidden, seed), EPS, weights(3 * hidden, 8), bias(3 * hidden, 16)
        )
        norms = (*norm(head_dim, seed + 2), *norm(head_dim, seed + 4))
        q = reference.rotary_append(qkv, *norms, EPS, *rotary, slots, lengths - 1, cache)
        attended = reference.decode_attention(q, cache, slots, lengths, self.positions, head_dim**-0.5)
        y = reference.linear_residual(attended, weights(hidden, 10), bias(hidden, 17), x)
        active = active_units(units, self.sparsity_percent, seed + 18)
        up_bias = torch.where(active, FAR, -FAR)
        up, down = weights(units, 12), weights(units, 14, "units", 1 / 16)
        return reference.mlp(y, *norm(hidden, seed + 6), EPS, up, up_bias, down, bias(hidden, 19))


def norm(size: int, seed: int) -> tuple[Tensor, Tensor]:
    return line((size,), 1, 0.1, seed), line((size,), 0, 0.1, seed + 1)

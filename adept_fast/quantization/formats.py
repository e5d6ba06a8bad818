"""The formats of packed weights, which mean the same on every device.

============================  ================================  ============================================
``int8``                      scale · Q, Q from −127 to 127     a float32 scale for each output
``fp8``                       scale · Q, Q a float8 (e4m3)      a float32 scale for each output
``int4-g32``, ``int4-g128``   scale · (Q − 8), Q from 0 to 15   a float16 scale for 32 or 128 weights of a row
============================  ================================  ============================================
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

_FLOAT32_MAX = torch.finfo(torch.float32).max

_MATRICES = (
    "self_attn.query_key_value.weight",
    "self_attn.dense.weight",
    "mlp.dense_h_to_4h.weight",
    "mlp.dense_4h_to_h.weight",
    "lm_head.weight",
)
_DOWN = "mlp.dense_4h_to_h.weight"
_LM_HEAD = "lm_head.weight"


class QuantizationError(ValueError):
    """A matrix that cannot be rounded: it holds a NaN, an infinity, or more than its format can represent."""


@dataclass(frozen=True)
class WeightFormat:
    """A format of packed weights.

    Args:
        name: as users write it.
        values_dtype: of the rounded weights; two of 4 bits share a byte.
        bits: of a rounded weight.
        max_value: the largest magnitude of a rounded weight, before its scale.
        group_size: adjacent weights of a row with one float16 scale; None for one float32 scale per output.
        max_weight: the largest magnitude that can be rounded.
        lm_head: the name of the format of the output matrix.
        description: the definition in words, for the files.
    """

    name: str
    values_dtype: torch.dtype
    bits: int
    max_value: float
    group_size: int | None
    max_weight: float
    lm_head: str
    description: str

    @property
    def scales_dtype(self) -> torch.dtype:
        return torch.float32 if self.group_size is None else torch.float16

    def padded(self, columns: int) -> int:
        """The columns up to the end of the last group."""
        group = self.group_size or 1
        return -(-columns // group) * group

    def __str__(self) -> str:
        return self.name if self.lm_head == self.name else f"{self.name}, lm_head {self.lm_head}"


def _eight_bits(name: str, dtype: torch.dtype, max_value: float, value: str) -> WeightFormat:
    description = f"weight = scale * q, q {value}, one float32 scale for each output"
    return WeightFormat(name, dtype, 8, max_value, None, _FLOAT32_MAX, name, description)


def _four_bits(group_size: int) -> WeightFormat:
    description = (
        f"weight = scale * (q - 8), q uint4, one float16 scale for each {group_size} weights of a row"
    )
    # Products of Q and a scale have to be float16 for the kernels of a GPU.
    return WeightFormat(f"int4-g{group_size}", torch.uint8, 4, 8, group_size, 2.0**15, "int8", description)


FORMATS = {
    known.name: known
    for known in (
        _eight_bits("int8", torch.int8, 127, "int8"),
        _eight_bits("fp8", torch.float8_e4m3fn, torch.finfo(torch.float8_e4m3fn).max, "float8 e4m3"),
        _four_bits(32),
        _four_bits(128),
    )
}


def float_format(dtype: torch.dtype) -> WeightFormat:
    """Weights of float16 or bfloat16 as they are, which only a layout puts in order."""
    name, largest = str(dtype).removeprefix("torch."), torch.finfo(dtype).max
    return WeightFormat(name, dtype, 8 * dtype.itemsize, largest, None, largest, name, "weight")


# The names that users write. ``int4`` is the 4-bit format that the kernels of both devices read.
NAMES = FORMATS | {"int4": FORMATS["int4-g128"]}


@dataclass(frozen=True)
class MatrixSpec:
    """How one matrix is packed, in any layout.

    Args:
        format: of this matrix.
        shape: [rows, columns] as packed: [out, in], or [in, out] if ``transposed``. Groups lie along rows.
        product_dtype: the dtype of products with many tokens on a GPU: bfloat16 if the weights were rounded
            from that, else float16.
    """

    format: WeightFormat
    shape: tuple[int, int]
    transposed: bool = False
    product_dtype: torch.dtype = torch.float16

    def rounded_from(self, dtype: torch.dtype) -> MatrixSpec:
        """The spec of a matrix whose weights were rounded from ``dtype``."""
        kept = torch.bfloat16 if dtype == torch.bfloat16 else torch.float16
        return replace(self, product_dtype=kept)

    def part(self, rows: int, columns: int) -> MatrixSpec:
        """The spec of some rows and columns of the matrix, rounded as they are in it."""
        return replace(self, shape=(rows, columns))

    @property
    def padded_columns(self) -> int:
        return self.format.padded(self.shape[1])

    @property
    def scales_shape(self) -> tuple[int, int]:
        """The shape of scales that broadcast over the groups of a row."""
        rows, columns = self.shape
        if self.format.group_size is not None:
            return rows, self.padded_columns // self.format.group_size
        return (1, columns) if self.transposed else (rows, 1)


def spec_of(name: str, shape: tuple[int, ...], weights: WeightFormat) -> MatrixSpec | None:
    """How ``weights`` packs the tensor ``name`` (as in transformers); None for tensors that stay floats.

    The down-projection is packed transposed, so that the rows of inactive neurons are not read. A step reads
    only a few rows of the embedding, so fewer bits would save no time.
    """
    if not name.endswith(_MATRICES):
        return None
    rows, columns = shape
    transposed = name.endswith(_DOWN)
    return MatrixSpec(
        FORMATS.get(weights.lm_head, weights) if name == _LM_HEAD else weights,
        (columns, rows) if transposed else (rows, columns),
        transposed,
    )

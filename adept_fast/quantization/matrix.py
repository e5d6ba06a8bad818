"""Packed matrices of any layout."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias, TypeVar

import torch
from torch import Tensor

from adept_fast.quantization.formats import MatrixSpec, WeightFormat
from adept_fast.quantization.rounding import RoundedRows, round_rows, row_blocks

Stored: TypeAlias = tuple[tuple[int, ...], torch.dtype]  # the shape and the dtype of a tensor
Packed = TypeVar("Packed", bound="QuantizedMatrix")


@dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix packed according to ``spec``, in the layout of its class.

    ``values`` and ``scales`` have the shapes and dtypes of ``stored``, and are contiguous.
    """

    values: Tensor
    scales: Tensor
    spec: MatrixSpec

    layout: ClassVar[str]

    @classmethod
    def holds(cls, weights: WeightFormat) -> bool:
        """Whether the matrices of a model in that format can have this layout."""
        return True

    @classmethod
    @abstractmethod
    def stored(cls, spec: MatrixSpec) -> tuple[Stored, Stored]:
        """The shapes and dtypes of the values and of the scales."""

    @abstractmethod
    def put(self, start: int, rows: RoundedRows) -> None:
        """Store rows from ``start`` on, a multiple of BLOCK_ROWS."""

    @abstractmethod
    def rounded(self, start: int, stop: int) -> RoundedRows:
        """Rows ``start`` to ``stop``, in plain order."""

    @abstractmethod
    def rows(self, count: int) -> QuantizedMatrix:
        """The first ``count`` rows, at most all, as a view."""

    @classmethod
    def bytes_of(cls, spec: MatrixSpec) -> int:
        """The bytes of a matrix, padding included."""
        return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in cls.stored(spec))

    @classmethod
    def empty(cls: type[Packed], spec: MatrixSpec, device: torch.device) -> Packed:
        values, scales = (torch.empty(shape, dtype=dtype, device=device) for shape, dtype in cls.stored(spec))
        return cls(values, scales, spec)

    @property
    def shape(self) -> tuple[int, int]:
        return self.spec.shape

    @property
    def bits(self) -> int:
        return self.spec.format.bits

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def nbytes(self) -> int:
        return int(self.values.nbytes + self.scales.nbytes)

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        """Values and scales, as the kernels take them."""
        return self.values, self.scales

    def to(self: Packed, device: torch.device) -> Packed:
        return replace(self, values=self.values.to(device), scales=self.scales.to(device))

    def has_nan_values(self) -> bool:
        """Whether a value is a NaN. Only float8 has NaNs, and it has no infinities."""
        if not self.values.dtype.is_floating_point:
            return False
        blocks = row_blocks(self.spec, self.device)
        return any(bool(self.values[start:stop].float().isnan().any()) for start, stop in blocks)

    def dequantize(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows ``start`` to ``stop`` (None: the last) of the matrix: float32 [stop - start, columns]."""
        stop = self.shape[0] if stop is None else min(stop, self.shape[0])
        return self.rounded(start, stop).weights()[:, : self.shape[1]]


Matrix: TypeAlias = Tensor | QuantizedMatrix


def quantize(matrix: Tensor, spec: MatrixSpec, layout: type[Packed]) -> Packed:
    """Round and pack a matrix of ``spec.shape`` on its device; beyond the result, memory holds one block.

    Raises QuantizationError if it is not a matrix, or holds a NaN, an infinity or too large a number.
    """
    packed = layout.empty(spec.rounded_from(matrix.dtype), matrix.device)
    for start, rows in round_rows(matrix, spec):
        packed.put(start, rows)
    return packed


def repack(matrix: QuantizedMatrix, layout: type[QuantizedMatrix], device: torch.device) -> QuantizedMatrix:
    """The same weights in ``layout`` on ``device``; the matrix itself if they are already.

    Beyond the result, memory holds one block.
    """
    if type(matrix) is layout:
        return matrix.to(device)
    packed = layout.empty(matrix.spec, device)
    for start, stop in row_blocks(matrix.spec, device):
        packed.put(start, matrix.rounded(start, stop).to(device))
    return packed


def first_rows(matrix: Matrix, count: int) -> Matrix:
    """The first ``count`` rows, as a view."""
    return matrix.rows(count) if isinstance(matrix, QuantizedMatrix) else matrix[:count]


def parts_of(matrix: Matrix) -> tuple[Tensor, Tensor | None]:
    """The tensors of a matrix for the kernels: values, and scales if it is packed."""
    return matrix.parts if isinstance(matrix, QuantizedMatrix) else (matrix, None)

"""Matrices of any layout."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias, TypeVar

import torch
from torch import Tensor

from adept_fast.quantization.formats import MatrixSpec, WeightFormat
from adept_fast.quantization.rounding import Agree, RoundedRows, of_whole_matrix, round_rows, row_blocks

Slices: TypeAlias = tuple[slice, ...]
Stored: TypeAlias = tuple[tuple[int, ...], torch.dtype]  # the shape and the dtype of a tensor
Ordered = TypeVar("Ordered", bound="LayoutMatrix")
Packed = TypeVar("Packed", bound="QuantizedMatrix")


class LayoutMatrix:
    """A matrix of ``spec`` in the layout of its class: the order of its numbers for kernels or files."""

    values: Tensor
    spec: MatrixSpec

    layout: ClassVar[str]

    @classmethod
    @abstractmethod
    def stored(cls, spec: MatrixSpec) -> tuple[Stored, ...]:
        """The shapes and dtypes of the tensors that hold the matrix: values, then scales that lie apart."""

    @classmethod
    @abstractmethod
    def of(cls: type[Ordered], spec: MatrixSpec, *tensors: Tensor) -> Ordered:
        """The matrix that such tensors hold."""

    @classmethod
    @abstractmethod
    def pack(
        cls: type[Ordered],
        matrix: Tensor,
        spec: MatrixSpec,
        device: torch.device,
        agree: Agree = of_whole_matrix,
    ) -> Ordered:
        """A matrix of floats, of ``spec.shape``, in this layout on ``device``; ``agree`` is ``round_rows``'s.

        Raises QuantizationError if it cannot be rounded.
        """

    @property
    @abstractmethod
    def parts(self) -> tuple[Tensor, Tensor | None]:
        """Values, and scales that lie apart from them, as the kernels take them."""

    @abstractmethod
    def rows(self: Ordered, count: int) -> Ordered:
        """The first ``count`` rows, at most all, as a view."""

    @abstractmethod
    def dequantize(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows ``start`` to ``stop`` (None: the last) of the matrix: float32 [stop - start, columns]."""

    @abstractmethod
    def unscaled(self, start: int, stop: int | None, dtype: torch.dtype) -> Tensor:
        """Rows ``start`` to ``stop``, in 8 bits without the scales of the outputs: [stop - start, columns].

        No wider float is allocated.
        """

    @classmethod
    def bytes_of(cls, spec: MatrixSpec) -> int:
        """The bytes of a matrix, padding included."""
        return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in cls.stored(spec))

    @classmethod
    def empty(cls: type[Ordered], spec: MatrixSpec, device: torch.device) -> Ordered:
        return cls.of(
            spec, *(torch.empty(shape, dtype=dtype, device=device) for shape, dtype in cls.stored(spec))
        )

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
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that hold the matrix."""
        return tuple(part for part in self.parts if part is not None)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    def map(self: Ordered, function: Callable[[Tensor], Tensor]) -> Ordered:
        """The matrix with the results of ``function`` in place of its tensors."""
        return self.of(self.spec, *map(function, self.tensors))

    def to(self: Ordered, device: torch.device) -> Ordered:
        return self.map(lambda tensor: tensor.to(device))


@dataclass(frozen=True)
class QuantizedMatrix(LayoutMatrix):
    """A matrix packed according to ``spec``, in the layout of its class.

    ``values`` and ``scales`` have the shapes and dtypes of ``stored``, and are contiguous.
    """

    values: Tensor
    scales: Tensor
    spec: MatrixSpec

    @classmethod
    def holds(cls, weights: WeightFormat) -> bool:
        """Whether the matrices of a model in that format can have this layout."""
        return True

    @classmethod
    def of(cls: type[Packed], spec: MatrixSpec, *tensors: Tensor) -> Packed:
        values, scales = tensors
        return cls(values, scales, spec)

    @classmethod
    def pack(
        cls: type[Packed],
        matrix: Tensor,
        spec: MatrixSpec,
        device: torch.device,
        agree: Agree = of_whole_matrix,
    ) -> Packed:
        return quantize(matrix.to(device), spec, cls, agree)

    @abstractmethod
    def put(self, start: int, rows: RoundedRows) -> None:
        """Store rows from ``start`` on, a multiple of BLOCK_ROWS."""

    @abstractmethod
    def rounded(self, start: int, stop: int) -> RoundedRows:
        """Rows ``start`` to ``stop``, in plain order."""

    @classmethod
    def slices(cls, spec: MatrixSpec, rows: range, columns: range) -> tuple[Slices, Slices] | None:
        """Where the values and scales of a part lie in those of a matrix; None if they are nowhere."""
        return None

    def part(self: Packed, rows: range, columns: range) -> Packed:
        """Some rows and columns as a matrix of their own, a view if it has such ``slices``.

        Columns begin at a multiple of the format's groups, and end at one or at the last column.
        """
        if (at := self.slices(self.spec, rows, columns)) is not None:
            spec = self.spec.part(len(rows), len(columns))
            return type(self)(self.values[at[0]], self.scales[at[1]], spec)
        packed = type(self).empty(self.spec.part(len(rows), len(columns)), self.device)
        for start, stop in row_blocks(packed.spec, self.device):
            rounded = self.rounded(rows.start + start, rows.start + stop)
            packed.put(start, rounded.columns(columns.start, columns.stop))
        return packed

    @property
    def parts(self) -> tuple[Tensor, Tensor | None]:
        return self.values, self.scales

    def has_nan_values(self) -> bool:
        """Whether a value is a NaN. Only float8 has NaNs, and it has no infinities."""
        if not self.values.dtype.is_floating_point:
            return False
        blocks = row_blocks(self.spec, self.device)
        return any(bool(self.rounded(*block).values.float().isnan().any()) for block in blocks)

    def dequantize(self, start: int = 0, stop: int | None = None) -> Tensor:
        stop = self.shape[0] if stop is None else min(stop, self.shape[0])
        return self.rounded(start, stop).weights()[:, : self.shape[1]]

    def unscaled(self, start: int, stop: int | None, dtype: torch.dtype) -> Tensor:
        rounded = self.rounded(start, self.shape[0] if stop is None else stop)
        weights = rounded.values.to(dtype) if self.bits == 8 else rounded.weights(dtype)
        return weights[:, : self.shape[1]]


Matrix: TypeAlias = Tensor | LayoutMatrix


def quantize(
    matrix: Tensor, spec: MatrixSpec, layout: type[Packed], agree: Agree = of_whole_matrix
) -> Packed:
    """Round and pack a matrix of ``spec.shape`` on its device; beyond the result, memory holds one block.

    ``agree`` is that of ``round_rows``, for a part of a matrix.

    Raises QuantizationError if it is not a matrix, or holds a NaN, an infinity or too large a number.
    """
    packed = layout.empty(spec.rounded_from(matrix.dtype), matrix.device)
    for start, rows in round_rows(matrix, spec, agree):
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
    return matrix[:count] if isinstance(matrix, Tensor) else matrix.rows(count)


def parts_of(matrix: Matrix) -> tuple[Tensor, Tensor | None]:
    """The tensors of a matrix for the kernels: values, and scales that lie apart from them."""
    return (matrix, None) if isinstance(matrix, Tensor) else matrix.parts

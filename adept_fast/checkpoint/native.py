"""A packed checkpoint, whose matrices are rounded already; docs/quantization.md defines the format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from adept_fast.checkpoint.base import (
    FLOATS,
    Checkpoint,
    CheckpointError,
    ExpectedTensor,
    StoredTensor,
    check_tensors,
    check_vocabulary,
)
from adept_fast.checkpoint.huggingface import CONFIG_FILE, SINGLE_FILE, read_tokenizer
from adept_fast.checkpoint.safetensors_file import open_safetensors
from adept_fast.config import PersimmonConfig
from adept_fast.quantization.formats import FORMATS, MatrixSpec, QuantizationError, WeightFormat, spec_of
from adept_fast.quantization.layout_cpu import TiledMatrix
from adept_fast.quantization.layout_plain import RowMajorMatrix
from adept_fast.quantization.matrix import LayoutMatrix, QuantizedMatrix, Slices
from adept_fast.quantization.rounding import Agree, of_whole_matrix
from adept_fast.system.regular_file import is_there

# How config.json describes the weights beside it.
SECTION = "quantization_config"
METHOD = "adept-fast"
VERSION = 2

# The layouts of packed weights in a file, by the names that users write: the first is for every device.
LAYOUTS: dict[str, type[QuantizedMatrix]] = {kind.layout: kind for kind in (RowMajorMatrix, TiledMatrix)}
_VERSION_1_FORMATS = {"int8": FORMATS["int8"], "int4": FORMATS["int4-g32"]}  # all of them cpu_tiled

EMBEDDING = "model.embed_tokens.weight"
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Packing:
    """How the matrices of a packed checkpoint are stored."""

    weights: WeightFormat
    layout: type[QuantizedMatrix]

    def __str__(self) -> str:
        return f"{self.weights.name} weights in the order {self.layout.layout}"


Kind = TypeVar("Kind", bound=LayoutMatrix)
KindOfMatrix = TypeVar("KindOfMatrix", bound=LayoutMatrix, covariant=True)


@dataclass(frozen=True)
class PackedMatrix(Generic[KindOfMatrix]):
    """A matrix that a weight format packs: ``spec`` of the checkpoint's ``tensor``, in ``layout``."""

    name: str
    tensor: str
    spec: MatrixSpec
    layout: type[KindOfMatrix]

    @property
    def nbytes(self) -> int:
        return self.layout.bytes_of(self.spec)

    def first_rows(self, count: int) -> PackedMatrix[KindOfMatrix]:
        """The first ``count`` rows of the matrix, as a matrix."""
        return replace(self, spec=replace(self.spec, shape=(count, self.spec.shape[1])))

    def pack(
        self, stored: StoredTensor, device: torch.device = _CPU, agree: Agree = of_whole_matrix
    ) -> KindOfMatrix:
        """The matrix on ``device``, rounded and packed there; ``agree`` is that of ``round_rows``.

        Raises CheckpointError naming a tensor that cannot be rounded.
        """
        matrix = stored.read()
        try:
            return self.layout.pack(matrix.t() if self.spec.transposed else matrix, self.spec, device, agree)
        except QuantizationError as error:
            raise CheckpointError(f"{stored.source}: tensor {stored.name} {error}") from error


@dataclass(frozen=True)
class StoredMatrix:
    """A packed matrix in a file: a call reads it, ``part`` some rows and columns of it."""

    layout: type[QuantizedMatrix]
    spec: MatrixSpec
    values: StoredTensor
    scales: StoredTensor

    def __call__(self) -> QuantizedMatrix:
        return self.layout(self.values.read(), self.scales.read(), self.spec)

    def part(self, rows: range, columns: range) -> QuantizedMatrix:
        """As ``QuantizedMatrix.part``; nothing else is read, if the layout has the part as slices."""
        at = self.layout.slices(self.spec, rows, columns)
        if at is None:
            return self().part(rows, columns)
        values, scales = _sliced(self.values, at[0]), _sliced(self.scales, at[1])
        return self.layout(values, scales, self.spec.part(len(rows), len(columns)))


def _sliced(tensor: StoredTensor, at: Slices) -> Tensor:
    for dimension, along in enumerate(at):
        start, stop, _ = along.indices(tensor.shape[dimension])
        tensor = tensor.part(dimension, start, stop)
    return tensor.read()


def packed_matrices(
    config: PersimmonConfig, weights: WeightFormat, layout: type[Kind]
) -> dict[str, PackedMatrix[Kind]]:
    """The matrices that ``weights`` packs, by name.

    With tied embeddings the output matrix is packed, and the embedding is not: each step reads the whole
    output matrix, but only a few rows of the embedding.
    """
    shapes = config.tensor_shapes()
    sources = {name: name for name in shapes}
    sources.setdefault("lm_head.weight", "model.embed_tokens.weight")
    matrices = {}
    for name, tensor in sources.items():
        spec = spec_of(name, shapes[tensor], weights)
        if spec is not None:
            matrices[name] = PackedMatrix(name, tensor, spec, layout)
    return matrices


def is_native(values: Mapping[str, Any]) -> bool:
    """Whether the contents of a ``config.json`` are those of a packed checkpoint."""
    section = values.get(SECTION)
    return isinstance(section, dict) and section.get("quant_method") == METHOD


def open_native(path: Path, values: dict[str, Any], *, mmap: bool = True) -> Checkpoint:
    """Open a packed checkpoint, whose ``config.json`` holds ``values``, and check its structure.

    No weight is read yet. Raises CheckpointError, ConfigError or TokenizerError, which name the file, the
    tensor and the allowed value.
    """
    packing = _packing(path / CONFIG_FILE, values[SECTION])
    config = PersimmonConfig.from_contents(values, path / CONFIG_FILE)
    tokenizer = read_tokenizer(path, values, config.vocab_size)
    check_vocabulary(path, config, tokenizer)
    file = path / SINGLE_FILE
    if not is_there(file):
        raise CheckpointError(f"{path}: {SINGLE_FILE} is missing")
    opened = open_safetensors(file, mmap=mmap)
    stored = opened.tensors
    if (found := _packing(file, opened.metadata)) != packing:
        raise CheckpointError(f"{file}: has {found}; config.json says {packing}")
    matrices = packed_matrices(config, packing.weights, packing.layout)
    check_tensors(file, tensors_of(config, matrices), stored)
    packed = {
        name: StoredMatrix(
            matrix.layout,
            matrix.spec.rounded_from(stored[EMBEDDING].dtype),
            stored[f"{name}.values"],
            stored[f"{name}.scales"],
        )
        for name, matrix in matrices.items()
    }
    tensors = {
        name: stored[name]
        if name in stored
        else StoredTensor(
            name, shape, torch.float32, str(file), partial(_unpacked, matrices[name], packed[name])
        )
        for name, shape in config.tensor_shapes().items()
    }
    return Checkpoint(path, "native", config, tensors, tokenizer, packing.weights, packed, mmap)


def tensors_of(
    config: PersimmonConfig, matrices: Mapping[str, PackedMatrix[QuantizedMatrix]]
) -> dict[str, ExpectedTensor]:
    """Name → shape and the dtypes that are allowed, of every tensor in the file, in its order."""
    tensors: dict[str, ExpectedTensor] = {}
    for at, part in enumerate(("values", "scales")):
        for name, matrix in matrices.items():
            shape, dtype = matrix.layout.stored(matrix.spec)[at]
            tensors[f"{name}.{part}"] = (shape, (dtype,))
    for name, whole in config.tensor_shapes().items():
        if name not in matrices:
            tensors[name] = (whole, FLOATS if name == EMBEDDING else (torch.float32,))
    return tensors


def _packing(source: Path, description: Mapping[str, Any]) -> Packing:
    """The packing in config.json, or in the header of the weights; CheckpointError if it is unknown."""
    version, weights = description.get("version"), description.get("weights")
    formats, layout = FORMATS, description.get("layout")
    if str(version) == "1":
        formats, layout = _VERSION_1_FORMATS, TiledMatrix.layout
    elif str(version) != str(VERSION):
        raise CheckpointError(
            f"{source}: is of version {version!r:.40} of the format; expected 1 or {VERSION}"
        )
    if not isinstance(weights, str) or weights not in formats:
        allowed = " or ".join(map(repr, formats))
        raise CheckpointError(f"{source}: has weights {weights!r:.40}; expected {allowed}")
    if not isinstance(layout, str) or layout not in LAYOUTS:
        allowed = " or ".join(map(repr, LAYOUTS))
        raise CheckpointError(f"{source}: has the layout {layout!r:.40}; expected {allowed}")
    if not LAYOUTS[layout].holds(formats[weights]):
        raise CheckpointError(
            f"{source}: has {weights} weights in the order {layout}, which has no such weights"
        )
    return Packing(formats[weights], LAYOUTS[layout])


def _unpacked(matrix: PackedMatrix[QuantizedMatrix], read: StoredMatrix) -> Tensor:
    """Float32, [out, in] as transformers stores it."""
    weights = read().dequantize()
    return weights.t() if matrix.spec.transposed else weights

"""A native checkpoint, whose matrices are packed as the kernels read them; NATIVE.md defines the format."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adept_fast.checkpoint.base import (
    WEIGHT_DTYPES,
    Checkpoint,
    CheckpointError,
    StoredTensor,
    check_vocabulary,
    dtype_name,
)
from adept_fast.checkpoint.huggingface import CONFIG_FILE, SINGLE_FILE, read_tokenizer
from adept_fast.checkpoint.packed import PackedMatrix, packed_matrices
from adept_fast.checkpoint.safetensors_file import open_safetensors
from adept_fast.config import PersimmonConfig
from adept_fast.quantization.quantize import WEIGHT_FORMATS, QuantizedMatrix
from adept_fast.system.regular_file import is_there

# How config.json says what lies beside it.
SECTION = "quantization_config"
METHOD = "adept-fast"
VERSION = 1

EMBEDDING = "model.embed_tokens.weight"
_FLOATS = tuple(WEIGHT_DTYPES.values())


def is_native(values: Mapping[str, Any]) -> bool:
    """Whether the contents of a ``config.json`` say that it is a native checkpoint's."""
    section = values.get(SECTION)
    return isinstance(section, dict) and section.get("quant_method") == METHOD


def open_native(path: Path, values: dict[str, Any], *, mmap: bool = True) -> Checkpoint:
    """Open a native checkpoint, whose ``config.json`` holds ``values``, and check its structure.

    No weight is read yet. Raises CheckpointError (or ConfigError, TokenizerError) naming the file, the tensor
    and what was expected.
    """
    weights = _weight_format(path / CONFIG_FILE, values[SECTION])
    config = PersimmonConfig.from_contents(values, path / CONFIG_FILE)
    tokenizer = read_tokenizer(path, values, config.vocab_size)
    check_vocabulary(path, config, tokenizer)
    file = path / SINGLE_FILE
    if not is_there(file):
        raise CheckpointError(f"{path}: {SINGLE_FILE} is missing")
    opened = open_safetensors(file, mmap=mmap)
    stored = opened.tensors
    if (found := _weight_format(file, opened.metadata)) != weights:
        raise CheckpointError(f"{file}: has {found} weights; config.json says {weights}")
    matrices = packed_matrices(config, weights)
    _check_tensors(file, stored, tensors_of(config, matrices))
    packed = {
        name: partial(_read_packed, matrix, stored[f"{name}.values"], stored[f"{name}.scales"])
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
    return Checkpoint(path, "native", config, tensors, tokenizer, weights, packed, mmap)


def tensors_of(
    config: PersimmonConfig, matrices: Mapping[str, PackedMatrix]
) -> dict[str, tuple[tuple[int, ...], tuple[torch.dtype, ...]]]:
    """Name → shape and the dtypes that are allowed, of every tensor in the file, in its order."""
    tensors: dict[str, tuple[tuple[int, ...], tuple[torch.dtype, ...]]] = {}
    for at, part in enumerate(("values", "scales")):
        for name, matrix in matrices.items():
            shape = matrix.packing.shapes(matrix.shape)[at]
            tensors[f"{name}.{part}"] = (shape, (matrix.packing.dtypes[at],))
    for name, whole in config.tensor_shapes().items():
        if name not in matrices:
            tensors[name] = (whole, _FLOATS if name == EMBEDDING else (torch.float32,))
    return tensors


def _weight_format(source: Path, description: Mapping[str, Any]) -> str:
    """What config.json, or the header of the weights, says of them; CheckpointError where it is unknown."""
    version, weights = description.get("version"), description.get("weights")
    if str(version) != str(VERSION):
        raise CheckpointError(f"{source}: is of version {version!r:.40} of the format; expected {VERSION}")
    if weights not in WEIGHT_FORMATS:
        allowed = " or ".join(map(repr, WEIGHT_FORMATS))
        raise CheckpointError(f"{source}: has weights {weights!r:.40}; expected {allowed}")
    return str(weights)


def _check_tensors(
    file: Path,
    stored: Mapping[str, StoredTensor],
    expected: Mapping[str, tuple[tuple[int, ...], tuple[torch.dtype, ...]]],
) -> None:
    """Raises CheckpointError for a tensor that is missing, left over, misshapen, or of another dtype."""
    for name, (shape, dtypes) in expected.items():
        if name not in stored:
            raise CheckpointError(f"{file}: tensor {name} is missing; the config calls for {list(shape)}")
        tensor = stored[name]
        if tensor.shape != shape:
            raise CheckpointError(
                f"{file}: tensor {name} has shape {list(tensor.shape)}; the config calls for {list(shape)}"
            )
        if tensor.dtype not in dtypes:
            raise CheckpointError(
                f"{file}: tensor {name} has dtype {dtype_name(tensor.dtype)}; "
                f"expected {' or '.join(map(dtype_name, dtypes))}"
            )
    for name in stored:
        if name not in expected:
            raise CheckpointError(
                f"{file}: tensor {name} does not belong to the model that the config describes"
            )


def _read_packed(matrix: PackedMatrix, values: StoredTensor, scales: StoredTensor) -> QuantizedMatrix:
    packing = matrix.packing
    return QuantizedMatrix(
        values.read(), scales.read(), matrix.shape, packing.bits, packing.group_size, packing.layout
    )


def _unpacked(matrix: PackedMatrix, read: partial[QuantizedMatrix]) -> Tensor:
    """Float32, [out, in] as transformers stores it."""
    weights = read().dequantize()
    return weights.t() if matrix.is_transposed else weights

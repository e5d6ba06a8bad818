"""The layouts and the formats of each device."""

from __future__ import annotations

import torch

from adept_fast.quantization.formats import FORMATS, NAMES, WeightFormat
from adept_fast.quantization.layout_cpu import TiledMatrix
from adept_fast.quantization.layout_gpu import GpuMatrix
from adept_fast.quantization.layout_gpu_tiles import GpuTiles
from adept_fast.quantization.matrix import QuantizedMatrix

# Of the matrices of a model, by the names that users write. Only a GPU has tiles.
ROW_MAJOR, TILES = "row_major", "tiles"

# By the type of device.
_KERNEL_FORMATS = {"cpu": ("int8", "int4-g32", "int4-g128"), "cuda": ("int8", "fp8", "int4-g32", "int4-g128")}
_ADVISED = {"cpu": ("int8", "int4"), "cuda": ("fp8", "int4")}


def layout_of(device: torch.device, layout: str = ROW_MAJOR) -> type[QuantizedMatrix]:
    """The layout of packed matrices on the device; without tiles a CPU has its only one."""
    if layout == TILES:
        return GpuTiles
    return GpuMatrix if device.type == "cuda" else TiledMatrix


def kernel_formats(device: torch.device) -> tuple[WeightFormat, ...]:
    """The formats that the kernels of the device read."""
    return tuple(FORMATS[name] for name in _KERNEL_FORMATS[device.type])


def advised_formats(device: torch.device) -> tuple[WeightFormat, ...]:
    """The recommended formats, in order of decreasing bits."""
    return tuple(NAMES[name] for name in _ADVISED[device.type])


def formats_of(device: torch.device) -> dict[str, WeightFormat]:
    """The formats that the kernels of the device read, by the names that users write."""
    return {name: known for name, known in NAMES.items() if known in kernel_formats(device)}

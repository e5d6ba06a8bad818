"""Which layout and which formats each device has."""

from __future__ import annotations

import torch

from adept_fast.quantization.formats import FORMATS, WeightFormat
from adept_fast.quantization.layout_cpu import TiledMatrix
from adept_fast.quantization.layout_gpu import GpuMatrix
from adept_fast.quantization.matrix import QuantizedMatrix

_KERNEL_FORMATS = {"cpu": ("int8", "int4-g32"), "cuda": ("fp8", "int4-g128")}  # by the type of device


def layout_of(device: torch.device) -> type[QuantizedMatrix]:
    """The order of packed matrices on the device."""
    return GpuMatrix if device.type == "cuda" else TiledMatrix


def kernel_formats(device: torch.device) -> tuple[WeightFormat, ...]:
    """Those that the device's kernels read, from the most bits to the fewest."""
    return tuple(FORMATS[name] for name in _KERNEL_FORMATS[device.type])


def formats_of(device: torch.device) -> dict[str, WeightFormat]:
    """The same by the names that users write."""
    kept = kernel_formats(device)
    return {known.name: known for known in kept} | {"int4": kept[-1]}

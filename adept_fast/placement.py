"""Placement: the device and the dtypes that a checkpoint runs in, chosen where the user leaves it open."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from adept_fast.checkpoint import WEIGHT_DTYPES, Checkpoint, dtype_name
from adept_fast.memory import available_bytes
from adept_fast.sampling import ParameterError
from adept_fast.weights import weights_bytes


@dataclass(frozen=True)
class Placement:
    """Where a checkpoint runs and in which dtypes; ``reason`` says why the matrices are in ``dtype``."""

    device: torch.device
    dtype: torch.dtype
    cache_dtype: torch.dtype
    reason: str


def choose_placement(checkpoint: Checkpoint, device: str, dtype: str, cache_dtype: str) -> Placement:
    """Raises ParameterError for a name that is not known or a device that is not there."""
    chosen_device = _device(device)
    matrix_dtype, reason = _matrix_dtype(checkpoint, chosen_device, dtype)
    return Placement(chosen_device, matrix_dtype, _named("cache_dtype", cache_dtype), reason)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ParameterError(f"device is {name!r}; expected auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ParameterError(f"device is {name!r}; expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ParameterError(f"device is {name!r}; this torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def _matrix_dtype(checkpoint: Checkpoint, device: torch.device, name: str) -> tuple[torch.dtype, str]:
    stored = checkpoint.dtype
    if name != "auto":
        return _named("dtype", name), "as asked"
    if device.type == "cuda":
        if stored == torch.float32:
            return torch.float16, "float32 is halved on a GPU"
        return stored, "as stored"
    if stored == torch.float32:
        return stored, "as stored"
    if weights_bytes(checkpoint, torch.float32) <= available_bytes(device) // 2:
        return torch.float32, f"widened once from {dtype_name(stored)}, since it fits in half the memory"
    return stored, "as stored, widened at every use, since float32 takes more than half the memory"


def _named(parameter: str, name: str) -> torch.dtype:
    if name not in WEIGHT_DTYPES:
        raise ParameterError(f"{parameter} is {name!r}; expected {', '.join(WEIGHT_DTYPES)}")
    return WEIGHT_DTYPES[name]

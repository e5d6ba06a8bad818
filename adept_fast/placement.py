"""Placement: the device and the dtypes that a checkpoint runs in, chosen where the user leaves it open."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from adept_fast import extension, huge_pages
from adept_fast.checkpoint import WEIGHT_DTYPES, Checkpoint, dtype_name
from adept_fast.memory import available_bytes
from adept_fast.quantize import WEIGHT_FORMATS
from adept_fast.sampling import ParameterError
from adept_fast.weights import embedding_dtype, weight_format, weights_bytes


@dataclass(frozen=True)
class Placement:
    """Where a checkpoint runs and in which dtypes; ``reason`` says why the matrices are in ``dtype``.

    Where ``weights`` is not None, the matrices are packed so, and ``dtype`` is the embedding's.
    """

    device: torch.device
    dtype: torch.dtype
    cache_dtype: torch.dtype
    reason: str
    weights: str | None = None
    small_pages_reason: str | None = None  # None where the matrices are copied to huge pages

    @property
    def pages_in_words(self) -> str:
        if self.small_pages_reason is None:
            return "huge (read faster than a memory-mapped file)"
        return f"small ({self.small_pages_reason})"

    @property
    def weights_in_words(self) -> str:
        """``int4, lm_head int8, embedding float16 (…)``."""
        floats = dtype_name(self.dtype)
        packed = {None: floats, "int8": f"int8, embedding {floats}"}
        chosen = packed.get(self.weights, f"{self.weights}, lm_head int8, embedding {floats}")
        return f"{chosen} ({self.reason})"


def choose_placement(
    checkpoint: Checkpoint, device: str, dtype: str, cache_dtype: str, weights: str | None = None
) -> Placement:
    """Raises ParameterError for a name that is not known or a device that is not there, CheckpointError where
    the checkpoint's weights are packed in another format than ``weights``."""
    chosen_device = _device(device)
    if weights is not None and weights not in WEIGHT_FORMATS:
        raise ParameterError(f"weights is {weights!r}; expected {' or '.join(WEIGHT_FORMATS)}, or None")
    packed = weight_format(checkpoint, weights)
    if packed is None:
        matrix_dtype, reason = _matrix_dtype(checkpoint, chosen_device, dtype)
    else:
        asked = checkpoint.dtype if dtype == "auto" else _named("dtype", dtype)
        matrix_dtype = embedding_dtype(checkpoint, asked, packed)
        reason = "as stored" if checkpoint.weights else f"packed from {dtype_name(checkpoint.dtype)}"
    held = weights_bytes(checkpoint, matrix_dtype, packed)
    pages = _small_pages_reason(chosen_device, held)
    return Placement(chosen_device, matrix_dtype, _named("cache_dtype", cache_dtype), reason, packed, pages)


def _small_pages_reason(device: torch.device, held_bytes: int) -> str | None:
    if device.type != "cpu":
        return "as its driver has them"
    if held_bytes > available_bytes(device) // 2:
        return "a copy of the weights would take more than half the memory"
    return huge_pages.unavailable()


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
    if extension.load().loaded:
        return stored, "as stored"
    if weights_bytes(checkpoint, torch.float32) <= available_bytes(device) // 2:
        return torch.float32, f"widened once from {dtype_name(stored)}, since it fits in half the memory"
    return stored, "as stored, widened at every use, since float32 takes more than half the memory"


def _named(parameter: str, name: str) -> torch.dtype:
    if name not in WEIGHT_DTYPES:
        raise ParameterError(f"{parameter} is {name!r}; expected {', '.join(WEIGHT_DTYPES)}")
    return WEIGHT_DTYPES[name]

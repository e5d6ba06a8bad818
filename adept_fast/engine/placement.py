"""Placement: the device and the dtypes that a checkpoint runs in, requested or chosen."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from adept_fast import extension
from adept_fast.arguments import ParameterError, one_of
from adept_fast.checkpoint import WEIGHT_DTYPES, Checkpoint, dtype_name
from adept_fast.memory.available import available_bytes
from adept_fast.memory.footprint import footprint
from adept_fast.ops import cuda, step_kernels
from adept_fast.quantization.formats import WeightFormat
from adept_fast.quantization.layouts import ROW_MAJOR, TILES, formats_of, layout_of
from adept_fast.system.short_text import short_repr
from adept_fast.weights import embedding_dtype, is_tied, weight_format

_AUTO_LAYOUT = (ROW_MAJOR, "the kernels that read tiles have not been timed on a GPU")


@dataclass(frozen=True)
class Placement:
    """The device, the dtypes and the layout of a checkpoint.

    ``dtype`` is that of the matrices, for ``dtype_reason``, or of the embedding if the matrices are packed as
    ``weights``. ``layout`` is that of the matrices, for ``layout_reason``.
    """

    device: torch.device
    dtype: torch.dtype
    cache_dtype: torch.dtype
    weights: WeightFormat | None
    dtype_reason: str
    layout: str
    layout_reason: str


def choose_placement(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: str | torch.dtype = "auto",
    cache_dtype: str | torch.dtype = "float16",
    weights: str | None = None,
    weight_layout: str = "auto",
    unavailable: str | None = None,
) -> Placement:
    """The placement on a device, which may be absent.

    ``unavailable`` is the reason that a GPU's kernels cannot run; None if they can.

    Raises ParameterError for a name that is not known or a layout that the kernels do not read, and
    CheckpointError if the checkpoint's weights are packed in another format than ``weights``.
    """
    packed = _chosen_weights(checkpoint, device, weights)
    requested = _dtype_name("dtype", dtype, "auto")
    cache = WEIGHT_DTYPES[_dtype_name("cache_dtype", cache_dtype)]
    refusal = unavailable or cuda.refuses_hidden_size(checkpoint.config.hidden_size)
    if packed is None:
        held, reason = _matrix_dtype(checkpoint, device, requested)
        refusal = refusal or cuda.refuses_floats(held)
    else:
        wanted = checkpoint.dtype if requested == "auto" else WEIGHT_DTYPES[requested]
        held = embedding_dtype(checkpoint, wanted, packed)
        reason = "as stored" if checkpoint.weights else f"packed from {dtype_name(checkpoint.dtype)}"
    layout, layout_reason = _layout(device, weight_layout, refusal)
    if layout == TILES:
        _check_step_kernels(checkpoint)
    if layout == TILES and is_tied(checkpoint, packed):
        layout_reason += "; the lm_head stays row_major, as it is the embedding too"
    return Placement(device, held, cache, packed, reason, layout, layout_reason)


def _check_step_kernels(checkpoint: Checkpoint) -> None:
    try:
        step_kernels.description(checkpoint.config.head_dim)
    except step_kernels.StepSettingError as error:
        raise ParameterError(str(error)) from error


def _layout(device: torch.device, requested: object, refusal: str | None) -> tuple[str, str]:
    """The layout of the matrices and why; ``refusal`` is the reason that the kernels do not read tiles."""
    name = one_of("weight_layout", requested, ("auto", ROW_MAJOR, TILES))
    if device.type == "cpu" and name != "auto":
        raise ParameterError(
            f"weight_layout is {name!r}; expected auto on a CPU, whose kernels read one layout"
        )
    if device.type == "cpu":
        return ROW_MAJOR, "the kernels of a CPU read no other"
    if name == TILES and refusal is not None:
        raise ParameterError(f"weight_layout is {TILES!r}; expected {ROW_MAJOR} or auto, as {refusal}")
    return _AUTO_LAYOUT if name == "auto" else (name, "as asked")


def _chosen_weights(checkpoint: Checkpoint, device: torch.device, weights: object) -> WeightFormat | None:
    """The format of the matrices, None for floats. ``int4`` is also any 4-bit format of a checkpoint."""
    stored, formats = checkpoint.weights, formats_of(device)
    if stored is not None:
        formats |= {stored.name: stored} | ({"int4": stored} if stored.bits == 4 else {})
    if weights is not None and not (isinstance(weights, str) and weights in formats):
        raise ParameterError(
            f"weights is {short_repr(weights)}; expected {' or '.join(formats)} on {device}, or None"
        )
    chosen = weight_format(checkpoint, formats[str(weights)] if weights is not None else None)
    if chosen is not None and not layout_of(device).holds(chosen):
        raise ParameterError(
            f"weights is {chosen.name}; expected {' or '.join(formats_of(device))} on {device}, or a GPU"
        )
    return chosen


def find_device(requested: object) -> torch.device:
    """The device of a name, or a torch.device. Raises ParameterError if it is absent."""
    if isinstance(requested, str) and requested == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = str(requested) if isinstance(requested, (str, torch.device)) else ""
    if not re.fullmatch("(cpu|cuda)(:[0-9]{1,3})?", name):
        raise ParameterError(f"device is {short_repr(requested)}; expected auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cpu":
        return torch.device("cpu")  # without an index, as tensors have it
    if (device.index or 0) >= torch.cuda.device_count():
        raise ParameterError(f"device is {name!r}; this torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def _matrix_dtype(checkpoint: Checkpoint, device: torch.device, name: str) -> tuple[torch.dtype, str]:
    stored = checkpoint.dtype
    if name != "auto":
        return WEIGHT_DTYPES[name], "as asked"
    if device.type == "cuda" and stored == torch.float32:
        return torch.float16, "float32 is halved on a GPU"
    if device.type == "cuda" or stored == torch.float32 or extension.load().loaded:
        return stored, "as stored"
    if footprint(checkpoint, torch.float32).total_bytes <= available_bytes(device) // 2:
        return torch.float32, f"widened once from {dtype_name(stored)}, since it fits in half the memory"
    return stored, "as stored, widened at every use, since float32 takes more than half the memory"


def _dtype_name(parameter: str, requested: object, *others: str) -> str:
    """The name of a dtype, given by name or as a torch.dtype; ``others`` are allowed too."""
    named = next((name for name, dtype in WEIGHT_DTYPES.items() if requested is dtype), requested)
    return one_of(parameter, named, (*WEIGHT_DTYPES, *others))

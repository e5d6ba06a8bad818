"""Placement: the device and the dtypes that a checkpoint runs in, chosen where the user leaves it open."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch

from adept_fast import extension
from adept_fast.arguments import ParameterError, one_of
from adept_fast.checkpoint import WEIGHT_DTYPES, Checkpoint, dtype_name
from adept_fast.memory.advice import available_bytes
from adept_fast.ops import cuda, optional
from adept_fast.quantization.formats import WeightFormat
from adept_fast.quantization.layouts import formats_of, kernel_formats, layout_of
from adept_fast.system import huge_pages
from adept_fast.system.short_text import short_repr
from adept_fast.weights import embedding_dtype, is_tied, weight_format, weights_bytes

EMBEDDING_PLACES = ("auto", "device", "host")


@dataclass(frozen=True)
class Placement:
    """Where a checkpoint runs and in which dtypes; ``reason`` says why the matrices are in ``dtype``.

    Where ``weights`` is not None, the matrices are packed so, and ``dtype`` is the embedding's.
    ``unreadable`` is why a GPU's kernels do not take the matrices, if so.
    ``vocab_rows`` are the rows of the vocabulary that are held: on a GPU those that the tokenizer has pieces
    for, on a CPU all. ``embedding`` is ``device``, ``host``, or ``auto`` where the memory plan is to choose.
    """

    device: torch.device
    dtype: torch.dtype
    cache_dtype: torch.dtype
    reason: str
    weights: WeightFormat | None = None
    small_pages_reason: str | None = None  # None where the matrices are copied to huge pages
    unreadable: str | None = None
    vocab_rows: int | None = None  # None for all
    embedding: str = "device"
    embedding_reason: str = "as asked"
    may_pin_embedding: bool = False  # whether it may be on the host
    asked_dtype: str = "auto"
    imagined_bytes: int | None = None  # free on a GPU that is only imagined

    @property
    def pages_in_words(self) -> str:
        if self.small_pages_reason is None:
            return "huge (read faster than a memory-mapped file)"
        return f"small ({self.small_pages_reason})"

    @property
    def weights_in_words(self) -> str:
        """``int4-g32, lm_head int8, embedding float16 (…)``."""
        chosen = dtype_name(self.dtype)
        if self.weights is not None:
            chosen = f"{self.weights}, embedding {chosen}"
        return f"{chosen} ({self.reason})"

    @property
    def embedding_place(self) -> str:
        """Where the embedding is: ``pinned on the host (…)``."""
        on_device = "in memory" if self.device.type == "cpu" else "on the device"
        where = {"device": on_device, "host": "pinned on the host", "auto": "on the device or on the host"}
        return f"{where[self.embedding]} ({self.embedding_reason})"

    def settled(self, embedding: str) -> Placement:
        """With the place that a memory plan chose for the embedding."""
        if self.embedding != "auto":
            return self
        reason = "all fits there" if embedding == "device" else "with it on the device not all would fit"
        return replace(self, embedding=embedding, embedding_reason=reason)

    @property
    def unpacking_bytes(self) -> int:
        """What a long prompt takes to turn weights into floats, block by block."""
        return cuda.DEQUANTIZING_BYTES if self.weights and self.device.type == "cuda" else 0


def choose_placement(
    checkpoint: Checkpoint,
    device: str | torch.device,
    dtype: str | torch.dtype,
    cache_dtype: str | torch.dtype,
    weights: str | None = None,
    embedding: str = "auto",
) -> Placement:
    """Raises ParameterError for a name that is not known, a device that is not there or an embedding that
    cannot be where it is asked for, CheckpointError where the checkpoint's weights are packed in another
    format than ``weights``."""
    chosen = _device(device)
    packed = _chosen_weights(checkpoint, chosen, weights)
    unavailable = cuda.unavailable(chosen) if chosen.type == "cuda" else None
    return _place(checkpoint, chosen, dtype, cache_dtype, packed, embedding, unavailable)


def imagine_placement(
    checkpoint: Checkpoint,
    free_bytes: int,
    dtype: str | torch.dtype,
    cache_dtype: str | torch.dtype,
    weights: str | None = None,
    embedding: str = "auto",
) -> Placement:
    """As ``choose_placement``, on a GPU with so much free memory that need not be there; the kernels are
    taken to run on it, and the host to have room for what is pinned."""
    device = torch.device("cuda")
    packed = _chosen_weights(checkpoint, device, weights)
    placement = _place(checkpoint, device, dtype, cache_dtype, packed, embedding, None)
    return replace(placement, imagined_bytes=free_bytes)


def held_dtype(
    checkpoint: Checkpoint, device: torch.device, asked: str, packed: WeightFormat | None
) -> torch.dtype:
    """That of the matrices, or where they are packed of the embedding."""
    return _held_dtype(checkpoint, device, asked, packed)[0]


def _place(
    checkpoint: Checkpoint,
    device: torch.device,
    asked_dtype: str | torch.dtype,
    cache_dtype: str | torch.dtype,
    packed: WeightFormat | None,
    embedding: str,
    unavailable: str | None,
) -> Placement:
    dtype = _dtype_name("dtype", asked_dtype, "auto")
    cache_dtype = _dtype_name("cache_dtype", cache_dtype)
    embedding = one_of("embedding", embedding, EMBEDDING_PLACES)
    held, reason = _held_dtype(checkpoint, device, dtype, packed)
    refusal = _not_on_host(checkpoint, device, packed, unavailable)
    place, why_there = _embedding_place(embedding, device, refusal)
    rows = checkpoint.tokenizer.vocab_size if device.type == "cuda" else None
    return Placement(
        device,
        held,
        WEIGHT_DTYPES[cache_dtype],
        reason,
        packed,
        _small_pages_reason(device, weights_bytes(checkpoint, held, packed, device, rows)),
        _unreadable(checkpoint, device, packed or held),
        rows,
        place,
        why_there,
        refusal is None,
        dtype,
    )


def _held_dtype(
    checkpoint: Checkpoint, device: torch.device, asked: str, packed: WeightFormat | None
) -> tuple[torch.dtype, str]:
    if packed is None:
        return _matrix_dtype(checkpoint, device, asked)
    wanted = checkpoint.dtype if asked == "auto" else WEIGHT_DTYPES[asked]
    reason = "as stored" if checkpoint.weights else f"packed from {dtype_name(checkpoint.dtype)}"
    return embedding_dtype(checkpoint, wanted, packed), reason


def _embedding_place(asked: str, device: torch.device, refusal: str | None) -> tuple[str, str]:
    """Where the embedding will be, or ``auto``, and why; ``refusal`` is why it cannot be on the host."""
    if device.type != "cuda":
        return "device", "as the rest"
    if asked == "host" and refusal is not None:
        raise ParameterError(f"embedding is 'host'; expected device or auto, as {refusal}")
    if asked == "auto":
        return ("auto", "as fits") if refusal is None else ("device", refusal)
    return asked, "as asked"


def _not_on_host(
    checkpoint: Checkpoint, device: torch.device, packed: WeightFormat | None, unavailable: str | None
) -> str | None:
    """Why the embedding cannot be on the host while the rest is on a GPU; None where it can."""
    if device.type != "cuda":
        return "the rest is there too"
    if is_tied(checkpoint, packed):
        return "it is the output matrix too, which every step reads"
    return None if unavailable is None else f"only the CUDA kernels look it up on the host: {unavailable}"


def _chosen_weights(checkpoint: Checkpoint, device: torch.device, weights: object) -> WeightFormat | None:
    """The format of the matrices, None for floats. ``int4`` is also whichever a checkpoint has."""
    stored, formats = checkpoint.weights, formats_of(device)
    if stored is not None:
        formats |= {stored.name: stored} | ({"int4": stored} if stored.bits == 4 else {})
    if weights is not None and not (isinstance(weights, str) and weights in formats):
        raise ParameterError(
            f"weights is {short_repr(weights)}; expected {' or '.join(formats)} on {device}, or None"
        )
    if device.type == "cuda":
        try:
            optional.allowed()
        except optional.OptionalPackageError as error:
            raise ParameterError(str(error)) from error
    chosen = weight_format(checkpoint, formats[str(weights)] if weights is not None else None)
    if chosen is not None and not layout_of(device).holds(chosen):
        raise ParameterError(
            f"weights is {chosen.name}; expected {' or '.join(formats_of(device))} on {device}, or a GPU"
        )
    return chosen


def _unreadable(checkpoint: Checkpoint, device: torch.device, held: WeightFormat | torch.dtype) -> str | None:
    """Why the kernels of a GPU do not take the matrices, and what they would take; None where they do."""
    if device.type != "cuda":
        return None
    if isinstance(held, WeightFormat) and held not in kernel_formats(device):
        return f"the kernels take {' and '.join(f.name for f in kernel_formats(device))}, not {held.name}"
    if held == torch.float32:
        return "the kernels take float16 and bfloat16, not float32"
    if checkpoint.config.hidden_size % cuda.VECTOR:
        return f"the kernels take a hidden_size in multiples of {cuda.VECTOR}"
    return None


def _small_pages_reason(device: torch.device, held_bytes: int) -> str | None:
    if device.type != "cpu":
        return "as its driver has them"
    if held_bytes > available_bytes(device) // 2:
        return "a copy of the weights would take more than half the memory"
    return huge_pages.unavailable()


def _device(asked: object) -> torch.device:
    """One that there is, by its name or as torch has it."""
    if isinstance(asked, str) and asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = str(asked) if isinstance(asked, (str, torch.device)) else ""
    if not re.fullmatch("(cpu|cuda)(:[0-9]{1,3})?", name):
        raise ParameterError(f"device is {short_repr(asked)}; expected auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cpu":
        return torch.device("cpu")  # without the index that a CPU may be given, and that no tensor has
    if (device.index or 0) >= torch.cuda.device_count():
        raise ParameterError(f"device is {name!r}; this torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def _matrix_dtype(checkpoint: Checkpoint, device: torch.device, name: str) -> tuple[torch.dtype, str]:
    stored = checkpoint.dtype
    if name != "auto":
        return WEIGHT_DTYPES[name], "as asked"
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


def _dtype_name(parameter: str, asked: object, *others: str) -> str:
    """Of a dtype that is given by name or as torch has it; ``others`` are taken too."""
    named = next((name for name, dtype in WEIGHT_DTYPES.items() if asked is dtype), asked)
    return one_of(parameter, named, (*WEIGHT_DTYPES, *others))

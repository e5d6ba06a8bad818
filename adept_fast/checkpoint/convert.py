"""From one checkpoint format to another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from adept_fast.checkpoint import CheckpointError, open_checkpoint
from adept_fast.checkpoint.save import DEFAULT_SHARD_BYTES, Saved, save_adept, save_huggingface
from adept_fast.checkpoint.save_native import save_native
from adept_fast.choices import CHECKPOINT_FORMATS
from adept_fast.quantization.formats import NAMES
from adept_fast.quantization.layout_plain import RowMajorMatrix

Format = Literal["huggingface", "adept", "native"]


@dataclass(frozen=True)
class ConversionReport:
    """The source of a conversion, and the written checkpoint."""

    source: Path
    source_format: str
    format: Format
    saved: Saved


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    revision: str | None = None,
    to: Format | None = None,
    dtype: torch.dtype | None = None,
    weights: str | None = None,
    layout: str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    mmap: bool = True,
    progress: bool = True,
) -> ConversionReport:
    """Write the checkpoint ``source`` to ``destination``, in another format or dtype.

    Args:
        source, revision: as in ``open_checkpoint``.
        to: the format to write; ``native`` is a packed checkpoint (default: ``native`` if ``weights`` is
            given, else Adept's for a source in Hugging Face's format, and Hugging Face's for any other).
        weights, layout: as in ``save_native``, for a packed checkpoint.
        dtype, max_shard_bytes, progress: as in ``save_huggingface``; only that format has shards. In a packed
            checkpoint the dtype is the embedding's.
        mmap: as in ``open_checkpoint``.

    Raises CheckpointError, ConfigError or TokenizerError if the source cannot be read or the destination
    not be written; the destination then does not exist.
    """
    if to is not None and to not in CHECKPOINT_FORMATS:
        raise ValueError(f"the format is {to!r}; expected {' or '.join(map(repr, CHECKPOINT_FORMATS))}")
    if to == "native" and weights is None:
        raise CheckpointError(
            f"weights is None; expected {' or '.join(map(repr, NAMES))} for the native format"
        )
    if to not in (None, "native") and weights is not None:
        raise CheckpointError(
            f"weights is {weights!r} and the format {to}; only the native one packs weights"
        )
    if layout is not None and weights is None:
        raise CheckpointError(f"layout is {layout!r} and weights None; only packed weights have a layout")
    checkpoint = open_checkpoint(source, revision, mmap=mmap, progress=progress)
    if weights is not None:
        saved = save_native(
            checkpoint,
            destination,
            weights=weights,
            layout=layout or RowMajorMatrix.layout,
            dtype=dtype,
            progress=progress,
        )
        return ConversionReport(checkpoint.path, checkpoint.format, "native", saved)
    chosen: Format = to or ("adept" if checkpoint.format == "huggingface" else "huggingface")
    if chosen == "huggingface":
        saved = save_huggingface(
            checkpoint, destination, dtype=dtype, max_shard_bytes=max_shard_bytes, progress=progress
        )
    else:
        saved = save_adept(checkpoint, destination, dtype=dtype, progress=progress)
    return ConversionReport(checkpoint.path, checkpoint.format, chosen, saved)

"""From one checkpoint format to the other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from adept_fast.checkpoint import open_checkpoint
from adept_fast.checkpoint.save import DEFAULT_SHARD_BYTES, Saved, save_adept, save_huggingface

Format = Literal["huggingface", "adept"]
FORMATS: tuple[Format, ...] = ("huggingface", "adept")


@dataclass(frozen=True)
class ConversionReport:
    """What was read, and what was written from it."""

    source: Path
    source_format: str
    format: Format
    saved: Saved


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    to: Format | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: bool = True,
) -> ConversionReport:
    """Write the checkpoint at ``source`` (or ``"demo"``) to ``destination``, in another format or dtype.

    Args:
        to: the format to write (default: the one that the source does not have).
        dtype, max_shard_bytes, progress: as in ``save_huggingface``; Adept's format has no shards.

    Raises CheckpointError, ConfigError or TokenizerError where the source cannot be read or the destination
    not be written; the destination then does not exist.
    """
    checkpoint = open_checkpoint(source)
    chosen: Format = to or ("adept" if checkpoint.format == "huggingface" else "huggingface")
    if chosen == "huggingface":
        saved = save_huggingface(
            checkpoint, destination, dtype=dtype, max_shard_bytes=max_shard_bytes, progress=progress
        )
    elif chosen == "adept":
        saved = save_adept(checkpoint, destination, dtype=dtype, progress=progress)
    else:
        raise ValueError(f"the format is {to!r}; expected {' or '.join(map(repr, FORMATS))}")
    return ConversionReport(checkpoint.path, checkpoint.format, chosen, saved)

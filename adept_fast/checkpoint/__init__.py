"""Checkpoints on disk: ``open_checkpoint`` recognises the format and checks the structure."""

from __future__ import annotations

from pathlib import Path

from adept_fast.checkpoint.adept import is_adept, open_adept
from adept_fast.checkpoint.adept_layout import TRACKER_FILE
from adept_fast.checkpoint.base import WEIGHT_DTYPES, Checkpoint, CheckpointError, StoredTensor, dtype_name
from adept_fast.checkpoint.huggingface import is_huggingface, open_huggingface
from adept_fast.checkpoint.location import Location, demo_path, locate
from adept_fast.checkpoint.native import is_native, open_native
from adept_fast.checkpoint.packed import PackedMatrix, packed_matrices

__all__ = [
    "WEIGHT_DTYPES",
    "Checkpoint",
    "CheckpointError",
    "Location",
    "PackedMatrix",
    "StoredTensor",
    "demo_path",
    "dtype_name",
    "locate",
    "open_checkpoint",
    "packed_matrices",
]


def open_checkpoint(
    path_or_name: str | Path, revision: str | None = None, *, progress: bool = True
) -> Checkpoint:
    """Open a checkpoint; its weights stay on disk until they are asked for.

    Args:
        path_or_name: ``"demo"``, the path of a Hugging Face directory, of Adept's release or of a native
            checkpoint, or a hub id ``owner/name``, whose missing files are downloaded.
        revision: of a hub id: a branch, a tag or a commit; None for ``main``.
        progress: show progress bars of downloads on stderr.

    Raises CheckpointError when there is nothing at the path, or nothing that is known.
    """
    path = locate(path_or_name, revision, progress=progress).path
    if is_native(path):
        return open_native(path)
    if is_huggingface(path):
        return open_huggingface(path)
    if is_adept(path):
        return open_adept(path)
    raise CheckpointError(
        f"{path}: not a checkpoint; expected a directory with config.json, or of Adept's release a directory "
        f"that holds {TRACKER_FILE}, iter_* or mp_rank_*, or its uncompressed tar"
    )

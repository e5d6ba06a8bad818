"""Checkpoints on disk: ``open_checkpoint`` recognises the format and checks the structure."""

from __future__ import annotations

from pathlib import Path

from adept_fast.checkpoint.adept import open_adept
from adept_fast.checkpoint.adept_layout import TRACKER_FILE, is_release
from adept_fast.checkpoint.base import (
    WEIGHT_DTYPES,
    Checkpoint,
    CheckpointError,
    CheckpointNotFoundError,
    StoredTensor,
    dtype_name,
)
from adept_fast.checkpoint.file_range import FileRange
from adept_fast.checkpoint.huggingface import open_huggingface, read_config
from adept_fast.checkpoint.location import Location, demo_path, locate
from adept_fast.checkpoint.native import PackedMatrix, is_native, open_native, packed_matrices

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


_NOT_A_CHECKPOINT = (
    f"not a checkpoint; expected a directory with config.json, or of Adept's release a directory "
    f"that holds {TRACKER_FILE}, iter_* or mp_rank_*, or its uncompressed tar"
)


def open_checkpoint(
    path_or_name: str | Path, revision: str | None = None, *, mmap: bool = True, progress: bool = True
) -> Checkpoint:
    """Open a checkpoint; its weights stay on disk until they are read.

    Args:
        path_or_name: ``"demo"``, the path of a Hugging Face directory, of Adept's release or of a packed
            checkpoint, or a hub id ``owner/name``, whose missing files are downloaded.
        revision: the branch, tag or commit of a hub id; None for ``main``.
        mmap: map weights into memory, or copy them. If a file is truncated later, reading its mapping ends
            the process; a copy raises CheckpointError.
        progress: show progress bars of downloads on stderr.

    Raises CheckpointError if nothing is at the path, or no known format.
    """
    path = locate(path_or_name, revision, progress=progress).path
    if not path.is_dir():
        return _open_file(path, mmap)
    values = read_config(path)
    if values is not None:
        open_directory = open_native if is_native(values) else open_huggingface
        return open_directory(path, values, mmap=mmap)
    if is_release(path):
        return open_adept(path, mmap=mmap)
    raise CheckpointNotFoundError(f"{path}: {_NOT_A_CHECKPOINT}")


def _open_file(path: Path, mmap: bool) -> Checkpoint:
    """A checkpoint that is one file: a tar."""
    file = FileRange.whole(path)
    if is_release(path, file):
        return open_adept(path, file, mmap=mmap)
    raise file.not_valid(_NOT_A_CHECKPOINT)

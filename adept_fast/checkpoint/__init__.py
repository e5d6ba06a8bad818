"""Checkpoints on disk: ``open_checkpoint`` recognises the format and checks the structure."""

from __future__ import annotations

from pathlib import Path

from adept_fast.checkpoint.adept import is_adept, open_adept
from adept_fast.checkpoint.adept_layout import TRACKER_FILE
from adept_fast.checkpoint.base import WEIGHT_DTYPES, Checkpoint, CheckpointError, StoredTensor, dtype_name
from adept_fast.checkpoint.file_range import FileRange
from adept_fast.checkpoint.huggingface import open_huggingface, read_config
from adept_fast.checkpoint.native import is_native, open_native
from adept_fast.checkpoint.packed import PackedMatrix, packed_matrices
from adept_fast.regular_file import missing_target
from adept_fast.stand_in import LOOKED_AT, why_unreadable

__all__ = [
    "WEIGHT_DTYPES",
    "Checkpoint",
    "CheckpointError",
    "PackedMatrix",
    "StoredTensor",
    "demo_path",
    "dtype_name",
    "open_checkpoint",
    "packed_matrices",
]


_NOT_A_CHECKPOINT = (
    f"not a checkpoint; expected a directory with config.json, or of Adept's release a directory "
    f"that holds {TRACKER_FILE}, iter_* or mp_rank_*, or its uncompressed tar"
)


def demo_path() -> Path:
    """The directory of the small checkpoint that ships with the package."""
    return Path(__file__).resolve().parent.parent / "demo"


def open_checkpoint(path_or_name: str | Path, *, mmap: bool = True) -> Checkpoint:
    """Open a checkpoint; its weights stay on disk until they are asked for.

    Args:
        path_or_name: ``"demo"``, or the path of a Hugging Face directory, of Adept's release or of a native
            checkpoint.
        mmap: map weights into memory, or copy them: a file that is truncated ends a process that reads it
            mapped, and is a CheckpointError where it is copied.

    Raises CheckpointError when there is nothing at the path, or nothing that is known.
    """
    path = demo_path() if str(path_or_name) == "demo" else Path(path_or_name).expanduser()
    if missing := missing_target(path):
        raise CheckpointError(f"{path}: {missing}")
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file or directory; expected a checkpoint, or 'demo'")
    if not path.is_dir():
        return _open_file(path, mmap)
    values = read_config(path)
    if values is not None:
        open_directory = open_native if is_native(values) else open_huggingface
        return open_directory(path, values, mmap=mmap)
    if is_adept(path):
        return open_adept(path, mmap=mmap)
    raise CheckpointError(f"{path}: {_NOT_A_CHECKPOINT}")


def _open_file(path: Path, mmap: bool) -> Checkpoint:
    """A checkpoint that is one file: a tar."""
    file = FileRange.whole(path)
    if is_adept(path, file):
        return open_adept(path, file, mmap=mmap)
    raise CheckpointError(
        why_unreadable(str(path), file.read_at(0, min(file.size, LOOKED_AT)), _NOT_A_CHECKPOINT)
    )

"""Checkpoints on disk: ``open_checkpoint`` recognises the format and checks the structure."""

from __future__ import annotations

from pathlib import Path

from adept_fast.checkpoint.adept import is_adept, open_adept
from adept_fast.checkpoint.adept_layout import TRACKER_FILE
from adept_fast.checkpoint.base import WEIGHT_DTYPES, Checkpoint, CheckpointError, StoredTensor, dtype_name
from adept_fast.checkpoint.huggingface import is_huggingface, open_huggingface
from adept_fast.checkpoint.native import is_native, open_native
from adept_fast.checkpoint.packed import PackedMatrix, packed_matrices

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


def demo_path() -> Path:
    """The directory of the small checkpoint that ships with the package."""
    return Path(__file__).resolve().parent.parent / "demo"


def open_checkpoint(path_or_name: str | Path) -> Checkpoint:
    """Open a checkpoint; its weights stay on disk until they are asked for.

    Args:
        path_or_name: ``"demo"``, or the path of a Hugging Face directory, of Adept's release or of a native
            checkpoint.

    Raises CheckpointError when there is nothing at the path, or nothing that is known.
    """
    path = demo_path() if str(path_or_name) == "demo" else Path(path_or_name).expanduser()
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file or directory; expected a checkpoint, or 'demo'")
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

"""Directories that appear complete or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from adept_fast.checkpoint.base import CheckpointError


@contextlib.contextmanager
def atomic_directory(destination: Path) -> Iterator[Path]:
    """A temporary directory beside ``destination`` that becomes it when the block ends without an exception.

    The files are flushed to disk before it gets its name. After any exception, an interrupt included, nothing
    of it is left.

    Raises CheckpointError where ``destination`` exists and is not an empty directory, or has no parent.
    """
    destination = Path(os.path.realpath(destination))
    require_free(destination)
    partial = destination.parent / f".{destination.name}.partial-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        partial.mkdir()
        yield partial
        for directory, _, files in os.walk(partial):
            for name in (*files, "."):
                _flush(Path(directory) / name)
        os.rename(partial, destination)
        _flush(destination.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def require_free(destination: Path) -> None:
    """Raises CheckpointError unless a directory can be made at ``destination`` without replacing anything."""
    if not destination.parent.is_dir():
        raise CheckpointError(
            f"{destination.parent}: there is no such directory to write {destination.name} to"
        )
    if not os.path.lexists(destination):
        return
    if not destination.is_dir() or any(destination.iterdir()):
        raise CheckpointError(f"{destination}: exists already; expected a new name or an empty directory")


def require_space(destination: Path, needed: int) -> None:
    """Raises CheckpointError where the disk of ``destination`` has fewer free bytes than ``needed``."""
    free = shutil.disk_usage(Path(os.path.realpath(destination)).parent).free
    if free < needed:
        raise CheckpointError(
            f"{destination}: needs {needed / 1e9:.2f} GB of disk space; {free / 1e9:.2f} GB are free"
        )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

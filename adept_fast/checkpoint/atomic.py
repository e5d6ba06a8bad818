"""Directories that appear complete or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from adept_fast.checkpoint.base import CheckpointError
from adept_fast.system.byte_counts import format_together

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def atomic_directory(destination: Path) -> Iterator[Path]:
    """A temporary directory beside ``destination`` that becomes it when the block ends without an exception.

    The files are flushed to disk before it gets its name. After any exception, an interrupt included, nothing
    of it is left; the next process for the same destination removes the rest of a killed one.

    Raises CheckpointError if ``destination`` exists and is not an empty directory, or has no parent.
    """
    destination = Path(os.path.realpath(destination))
    require_free(destination)
    with partial_directory(destination) as partial:
        yield partial
        for directory, _, files in os.walk(partial):
            for name in (*files, "."):
                flush(Path(directory) / name)
        os.rename(partial, destination)
        flush(destination.parent)


@contextlib.contextmanager
def partial_directory(destination: Path) -> Iterator[Path]:
    """A new directory beside ``destination`` that is removed at the end, unless it has been renamed.

    It is locked as long as this process lives. Directories that dead processes left are removed first.
    """
    remove_abandoned(destination)
    partial, descriptor = _create_locked(destination)
    try:
        yield partial
    finally:
        try:
            _remove(partial)  # of another name now, if it has been renamed
        except BaseException:  # a second interrupt
            _remove(partial)
            raise
        finally:
            os.close(descriptor)


def remove_abandoned(destination: Path) -> None:
    """Remove the partial directories of ``destination`` whose processes are dead.

    A process locks its directory until it ends. On a file system without locks, nothing is removed.
    """
    destination = Path(os.path.realpath(destination))
    pattern = re.compile(rf"\.{re.escape(destination.name)}\.partial-[0-9]+-[0-9a-f]{{8}}")
    try:
        names = [entry.name for entry in os.scandir(destination.parent) if pattern.fullmatch(entry.name)]
    except OSError:
        return  # writing there will raise the error
    for name in names:
        path = destination.parent / name
        try:
            descriptor = os.open(path, _DIRECTORY)
        except OSError:
            continue  # a link, a file, another user's, or gone
        try:
            if os.fstat(descriptor).st_uid == os.geteuid() and _lock(descriptor):
                _remove(path)
        except BlockingIOError:
            pass  # its process lives
        finally:
            os.close(descriptor)


def require_free(destination: Path) -> None:
    """Raises CheckpointError unless ``destination`` can be created without replacing anything."""
    if not destination.parent.is_dir():
        raise CheckpointError(
            f"{destination.parent}: there is no such directory to write {destination.name} to"
        )
    if not os.path.lexists(destination):
        return
    if not destination.is_dir() or any(destination.iterdir()):
        raise CheckpointError(f"{destination}: exists already; expected a new name or an empty directory")


def require_space(destination: Path, needed_bytes: int) -> None:
    """Removes what dead processes left; raises CheckpointError if the disk still has fewer free bytes."""
    remove_abandoned(destination)
    free_bytes = shutil.disk_usage(Path(os.path.realpath(destination)).parent).free
    if free_bytes < needed_bytes:
        needed, free = format_together(needed_bytes, free_bytes)
        raise CheckpointError(f"{destination}: needs {needed} of disk space; {free} are free")


def flush(path: Path) -> None:
    """Wait until a file, or a directory's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create_locked(destination: Path) -> tuple[Path, int]:
    """A new partial directory, and the descriptor that holds its lock."""
    while True:
        token = f"{os.getpid()}-{secrets.token_hex(4)}"
        partial = destination.parent / f".{destination.name}.partial-{token}"
        partial.mkdir()
        try:
            descriptor = os.open(partial, _DIRECTORY)
        except FileNotFoundError:
            continue  # removed as abandoned before it was locked
        try:
            _lock(descriptor)
            if _is_still(partial, descriptor):
                return partial, descriptor
        except BlockingIOError:
            pass  # likewise, and about to be removed
        except BaseException:
            _remove(partial)
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Lock it until it is closed; False if there are no locks, BlockingIOError if another has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _remove(directory: Path) -> None:
    """Remove a directory as far as possible; links are not followed."""
    shutil.rmtree(directory, ignore_errors=True)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the name stands for the directory that was opened by it."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    opened = os.fstat(descriptor)
    return stat.S_ISDIR(status.st_mode) and (status.st_dev, status.st_ino) == (opened.st_dev, opened.st_ino)

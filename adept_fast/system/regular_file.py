"""A file that is opened once, so that the checked file is the one read, even if its name changes meaning."""

from __future__ import annotations

import codecs
import os
import stat
from pathlib import Path

# Opening a FIFO for reading would otherwise wait until somebody writes to it.
_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISSOCK, "a socket"),
)
_MAX_BYTES_AT_ONCE = 2**24

STAND_IN_BYTES = 512  # bytes at the beginning of a file that suffice to recognise a stand-in
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<body", b"<?xml", b"<error>")


class FileError(ValueError):
    """A file that cannot be opened, is no regular file, or is larger than its kind may be."""


class RegularFile:
    """A regular file, open for reading until it is collected.

    ``size`` is its size in bytes on opening; ``descriptor`` is its file descriptor.

    Raises FileError if the path cannot be opened or is a directory, a FIFO, a device or a socket.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.descriptor = -1
        try:
            self.descriptor = os.open(self.path, _FLAGS)
            status = os.fstat(self.descriptor)
        except (OSError, ValueError) as error:  # a ValueError for a path with a NUL
            raise FileError(_why_not_opened(self.path, error)) from error
        if not stat.S_ISREG(status.st_mode):
            kind = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), "something else")
            raise FileError(f"{self.path}: is {kind}; expected a regular file")
        self.size = status.st_size

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

    @property
    def system_path(self) -> str:
        """A path of this very file, for libraries that open files themselves; valid while it is open."""
        return f"/dev/fd/{self.descriptor}"

    def read(self, limit: int) -> bytes:
        """All its bytes. Raises FileError if there are more than ``limit``, or fewer than there were."""
        if self.size > limit:
            raise FileError(f"{self.path}: has {self.size} bytes; expected at most {limit}")
        return self.read_at(0, self.size)

    def read_at(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``. Raises FileError if the file ends before."""
        buffer = bytearray(length)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` with the bytes from ``offset``. Raises FileError if the file ends before."""
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self.descriptor, [buffer[done : done + _MAX_BYTES_AT_ONCE]], offset + done)
            except OSError as error:
                raise FileError(f"{self.path}: cannot be read ({error.strerror or error})") from error
            if not count:
                ends = os.fstat(self.descriptor).st_size
                raise FileError(f"{self.path}: ends at byte {ends}; it had {self.size} bytes before")
            done += count


def is_there(path: str | Path) -> bool:
    """Whether anything has that name, even a broken link: opening that raises the error."""
    return os.path.lexists(path)


def missing_target(path: str | Path) -> str | None:
    """The clause for a link whose target is missing; None for anything else."""
    if not os.path.islink(path) or os.path.exists(path):
        return None
    return f"is a link, and its target {os.path.realpath(path)} is missing, so the download is incomplete"


def read_regular(path: str | Path, limit: int) -> bytes:
    """The bytes of a regular file. Raises FileError if it is none, or has more than ``limit``."""
    return RegularFile(path).read(limit)


def _why_not_opened(path: Path, error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError) and (missing := missing_target(path)):
        return f"{path}: {missing}"
    return f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})"


def stand_in(beginning: bytes) -> str | None:
    """The clause for a Git LFS pointer or a server's page in place of a file; None for any other."""
    if beginning.startswith(_LFS_POINTER):
        return "is a Git LFS pointer; expected the file itself, which `git lfs pull` downloads"
    text = beginning.removeprefix(codecs.BOM_UTF8).lstrip()[:20].lower()
    if text.startswith(_PAGES):
        return "is an HTML or XML page, as a server sends for an error; expected the file itself"
    return None


def why_unreadable(label: str, beginning: bytes, otherwise: str) -> str:
    """The sentence on a file that failed to parse: the clause of ``stand_in``, or else ``otherwise``."""
    return f"{label}: {stand_in(beginning[:STAND_IN_BYTES]) or otherwise}"

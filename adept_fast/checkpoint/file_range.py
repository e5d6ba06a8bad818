"""A file, or a stretch of one, to be read or memory-mapped and never written."""

from __future__ import annotations

import io
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from adept_fast.checkpoint.base import CheckpointError


@dataclass(frozen=True)
class FileRange:
    """A file, or the stretch of a tar that is one of its members. ``label`` is its name in errors."""

    path: Path
    offset: int
    size: int
    label: str

    def open(self) -> BinaryIO:
        """A seekable file of these bytes alone; CheckpointError where the file cannot be opened."""
        try:
            file = open(self.path, "rb", buffering=0)  # noqa: SIM115 (the window closes it)
            return io.BufferedReader(_Window(file, self.offset, self.size))
        except OSError as error:
            raise CheckpointError(f"{self.label}: cannot be read ({error.strerror or error})") from error

    def read(self, limit: int) -> bytes:
        """All the bytes; CheckpointError where there are more than ``limit``."""
        if self.size > limit:
            raise CheckpointError(f"{self.label}: has {self.size} bytes; expected at most {limit}")
        with self.open() as file:
            return file.read()

    def map(self, start: int, length: int) -> memoryview:
        """``length`` bytes from ``start``, memory-mapped; what is written there never reaches the file.

        Raises CheckpointError where the file has become shorter than it was.
        """
        first = self.offset + start
        before = first % mmap.ALLOCATIONGRANULARITY
        try:
            with open(self.path, "rb") as file:
                mapping = mmap.mmap(
                    file.fileno(), before + length, access=mmap.ACCESS_COPY, offset=first - before
                )
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.label}: cannot be memory-mapped ({error})") from error
        return memoryview(mapping)[before:]


class _Window(io.RawIOBase):
    """The bytes of a FileRange as a file of their own."""

    def __init__(self, file: io.FileIO, start: int, size: int) -> None:
        self._file = file
        self._start = start
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if origin + offset < 0:
            raise OSError(f"seek to {origin + offset}, before the beginning")
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(self._size - self._position, 0))
        self._file.seek(self._start + self._position)
        count = self._file.readinto(memoryview(buffer)[:wanted])
        self._position += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()

"""A file, or a stretch of one, to be read or memory-mapped and never written."""

from __future__ import annotations

from dataclasses import dataclass
from mmap import ACCESS_COPY, ALLOCATIONGRANULARITY
from mmap import mmap as map_file
from pathlib import Path

from adept_fast.checkpoint.base import CheckpointError
from adept_fast.system.regular_file import STAND_IN_BYTES, FileError, RegularFile, why_unreadable


@dataclass(frozen=True)
class FileRange:
    """A regular file, or the stretch of a tar that is one of its members. ``label`` is its name in errors.

    The file stays open as long as the range is there. ``mmap`` is whether ``view`` maps it or copies.
    """

    file: RegularFile
    offset: int
    size: int
    label: str
    mmap: bool = True

    @classmethod
    def whole(cls, path: Path, *, mmap: bool = True) -> FileRange:
        """All of a file; CheckpointError where it cannot be opened or is not regular."""
        try:
            file = RegularFile(path)
        except FileError as error:
            raise CheckpointError(str(error)) from error
        return cls(file, 0, file.size, str(path), mmap)

    def read(self, limit: int) -> bytes:
        """All the bytes; CheckpointError where there are more than ``limit``."""
        if self.size > limit:
            raise CheckpointError(f"{self.label}: has {self.size} bytes; expected at most {limit}")
        return self.read_at(0, self.size)

    def read_at(self, start: int, length: int) -> bytes:
        """``length`` bytes from ``start``; CheckpointError where the file has become shorter than it was."""
        buffer = bytearray(length)
        self.read_into(memoryview(buffer), start)
        return bytes(buffer)

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill ``buffer`` from ``start`` on; CheckpointError where the file has become shorter."""
        try:
            self.file.read_into(buffer, self.offset + start)
        except FileError as error:
            is_whole = self.label == str(self.file.path)
            raise CheckpointError(
                str(error) if is_whole else f"{self.label}: cannot be read ({error})"
            ) from error

    def view(self, start: int, length: int) -> memoryview:
        """``length`` bytes from ``start``, to be read; what is written there never reaches the file.

        Memory-mapped, they end the process if the file becomes shorter before they are read; copied, they
        take memory. Raises CheckpointError where the file has become shorter already.
        """
        if self.mmap and length:
            return self._mapped(start, length)
        buffer = memoryview(bytearray(length))
        self.read_into(buffer, start)
        return buffer

    def not_valid(self, otherwise: str) -> CheckpointError:
        """The error for a file that failed to parse: what stands in its place, or else ``otherwise``."""
        beginning = self.read_at(0, min(self.size, STAND_IN_BYTES))
        return CheckpointError(why_unreadable(self.label, beginning, otherwise))

    def _mapped(self, start: int, length: int) -> memoryview:
        first = self.offset + start
        before = first % ALLOCATIONGRANULARITY
        try:
            mapping = map_file(
                self.file.descriptor, before + length, access=ACCESS_COPY, offset=first - before
            )
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.label}: cannot be memory-mapped ({error})") from error
        return memoryview(mapping)[before:]

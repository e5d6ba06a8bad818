"""A file, or a part of one, that is read or memory-mapped and never written."""

from __future__ import annotations

from dataclasses import dataclass
from mmap import ACCESS_COPY, ALLOCATIONGRANULARITY
from mmap import mmap as map_file
from pathlib import Path

from adept_fast.checkpoint.base import CheckpointError
from adept_fast.system.regular_file import STAND_IN_BYTES, FileError, RegularFile, why_unreadable


@dataclass(frozen=True)
class FileRange:
    """A regular file, or one member of a tar. ``label`` is its name in errors.

    The file stays open as long as the range exists. ``mmap`` is whether ``view`` maps or copies.
    """

    file: RegularFile
    offset: int
    size: int
    label: str
    mmap: bool = True

    @classmethod
    def whole(cls, path: Path, *, mmap: bool = True) -> FileRange:
        """All of a file; CheckpointError if it cannot be opened or is not regular."""
        try:
            file = RegularFile(path)
        except FileError as error:
            raise CheckpointError(str(error)) from error
        return cls(file, 0, file.size, str(path), mmap)

    def read(self, limit: int) -> bytes:
        """All the bytes; CheckpointError if there are more than ``limit``."""
        if self.size > limit:
            raise CheckpointError(f"{self.label}: has {self.size} bytes; expected at most {limit}")
        return self.read_at(0, self.size)

    def read_at(self, start: int, length: int) -> bytes:
        """``length`` bytes from ``start``; CheckpointError if the file has become shorter than it was."""
        buffer = bytearray(length)
        self.read_into(memoryview(buffer), start)
        return bytes(buffer)

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill ``buffer`` from ``start`` on; CheckpointError if the file has become shorter."""
        try:
            self.file.read_into(buffer, self.offset + start)
        except FileError as error:
            is_whole = self.label == str(self.file.path)
            raise CheckpointError(
                str(error) if is_whole else f"{self.label}: cannot be read ({error})"
            ) from error

    def view(self, start: int, length: int) -> memoryview:
        """``length`` bytes from ``start``. Writes to them never reach the file.

        A mapping ends the process if the file becomes shorter before it is read; a copy needs memory. Raises
        CheckpointError if the file has become shorter already.
        """
        if self.mmap and length:
            return self._mapped(start, length)
        buffer = memoryview(bytearray(length))
        self.read_into(buffer, start)
        return buffer

    def not_valid(self, otherwise: str) -> CheckpointError:
        """The error for a file that failed to parse: the clause of ``stand_in``, or else ``otherwise``."""
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

"""BatchFiles: the files that a batch reads and writes."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from adept_fast.server.batch.batch_error import BatchError


@dataclass(frozen=True)
class BatchFiles:
    """The input, and the output with what stands beside it until it is whole."""

    input: Path
    output: Path

    @classmethod
    def checked(cls, source: str | Path, destination: str | Path) -> BatchFiles:
        """Raises BatchError for an output that cannot be written, or that is the input."""
        files = cls(Path(source), Path(os.path.realpath(destination)))
        if not files.output.parent.is_dir():
            raise BatchError(
                f"{files.output.parent}: there is no such directory to write {files.output.name} to"
            )
        for path in (files.output, files.journal, files.unnamed):
            if os.path.lexists(path) and not path.is_file():
                raise BatchError(f"{path}: is no regular file; expected a file of a batch, or no such file")
            with contextlib.suppress(FileNotFoundError):
                if path.samefile(files.input):
                    raise BatchError(f"{path}: is the input; expected another file for the output")
        return files

    @property
    def journal(self) -> Path:
        """Has the answers so far."""
        return self.output.with_name(f"{self.output.name}.partial")

    @property
    def unnamed(self) -> Path:
        """The output until it is whole, and gets its name."""
        return self.output.with_name(f"{self.output.name}.partial.sorted")

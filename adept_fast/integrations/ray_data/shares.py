"""Shares: the lines of a batch as blocks of Ray Data, read from the input on the machine that has it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from adept_fast.server.batch.line_index import LocatedLine, read_located
from adept_fast.server.batch.line_runner import GivenLine
from adept_fast.system.regular_file import RegularFile

Places = np.ndarray[Any, np.dtype[np.int64]]  # [lines, fields of LocatedLine]


@dataclass(frozen=True)
class Share:
    """Lines that one worker answers together, by their places in the input."""

    path: Path
    places: Places

    @property
    def lines(self) -> list[LocatedLine]:
        return [LocatedLine(*place) for place in self.places.tolist()]

    def __call__(self) -> Iterator[pa.Table]:
        """Read them: → one block. Raises FileError or BatchError if the file has changed."""
        file, lines = RegularFile(self.path), self.lines
        yield pa.table(
            {
                "index": pa.array([line.index for line in lines], pa.int64()),
                "number": pa.array([line.number for line in lines], pa.int64()),
                "content": pa.array([read_located(file, line) for line in lines], pa.large_binary()),
            }
        )


class Shares(Datasource):  # type: ignore[misc]  # ray is not looked at
    """All shares of a batch."""

    def __init__(self, shares: Sequence[Share]) -> None:
        self._shares = shares

    def estimate_inmemory_data_size(self) -> int:
        return sum(line.length for share in self._shares for line in share.lines)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One for each share, whatever ``parallelism`` is: a share is what a dead worker loses."""
        return [ReadTask(share, _metadata(share)) for share in self._shares]


def given_lines(block: pa.Table) -> Iterator[GivenLine]:
    """The lines of a block."""
    for row in block.to_pylist():
        yield GivenLine(row["index"], row["number"], row["content"])


def shares_of(path: Path, lines: Iterable[LocatedLine], size: int) -> list[Share]:
    """The lines in their order, ``size`` in a share."""
    left, shares = iter(lines), []
    while held := [astuple(line) for line in itertools.islice(left, size)]:
        shares.append(Share(path, np.array(held, np.int64)))
    return shares


def _metadata(share: Share) -> BlockMetadata:
    lines = share.lines
    size = sum(line.length for line in lines)
    return BlockMetadata(num_rows=len(lines), size_bytes=size, exec_stats=None, input_files=None)

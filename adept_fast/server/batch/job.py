"""BatchJob: a batch from its input to its output, through a journal that a later process can go on with."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from adept_fast.server.batch.answer import beginning, failure, is_failure
from adept_fast.server.batch.batch_error import BatchError
from adept_fast.server.batch.files import BatchFiles
from adept_fast.server.batch.journal import Journal, sync_directory
from adept_fast.server.batch.line import MAX_BYTES, Line
from adept_fast.server.batch.line_error import LineError
from adept_fast.server.batch.line_index import LineIndex, LocatedLine
from adept_fast.server.batch.line_runner import GivenLine
from adept_fast.server.batch.origin import BatchOrigin
from adept_fast.system.json_text import json_text
from adept_fast.system.short_text import short_repr

_FINGERPRINT_DIGITS = 16
_BUFFER_BYTES = 2**20
_MAX_ANSWER_BYTES = 2**32  # a file may have no end of line
_DIGESTS = "input", "checkpoint"  # facts that nobody reads


@dataclass(frozen=True)
class Written:
    """The lines of an output, and how many of them say that their request failed."""

    lines: int
    failed: int


class BatchJob:
    """A batch. No other process can work on it before ``close``, which the end of a ``with`` block calls.

    ``lines`` are those of the input; ``written`` is None until the output is whole.

    Args:
        facts: what the answers depend on beside the input, by the names that users know.
        seed: the seeds of lines that have none are derived from it.
        model_name: what requests name as ``model``.
        on_read: called with the number of bytes of the input that were read since the last call.

    Raises BatchError if the output exists and is of another batch, if the batch was begun with another input
    or other facts, or if another process works on it; FileError if the input cannot be read; OSError.
    """

    def __init__(
        self,
        files: BatchFiles,
        facts: Mapping[str, str],
        *,
        seed: int,
        model_name: str,
        on_read: Callable[[int], object] = lambda _: None,
    ) -> None:
        self.files = files
        self.written: Written | None = None
        self._journal = Journal(files.journal)
        try:
            self.lines = LineIndex(files.input, on_read)
            self._facts = {
                "input": self.lines.digest,
                **facts,
                "seed": str(seed),
                "model_name": model_name,
            }
            fingerprint = hashlib.sha256(json_text(self._facts).encode()).hexdigest()[:_FINGERPRINT_DIGITS]
            header = self._checked_header()
            created = int(time.time()) if header is None else int(header["created"])
            self.origin = BatchOrigin(fingerprint, seed, created, model_name)
            self._placement: dict[str, str] | None = None if header is None else header["placement"]
            if os.path.lexists(files.output):
                self.written = self._found_output()
                if header is not None:
                    self._journal.remove()  # which was all that an earlier process had left to do
            elif header is not None:
                self._journal.resume(len(self.lines))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> BatchJob:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes work on it."""
        self._journal.close()

    @property
    def done(self) -> int:
        """How many lines have an answer."""
        return len(self.lines) if self.written is not None else self._journal.count

    @property
    def dropped_bytes(self) -> int:
        """The length of the damaged end of the journal, whose answers are computed again."""
        return self._journal.dropped_bytes

    @property
    def placement(self) -> dict[str, str] | None:
        """As ``begin`` was given it, by this or an earlier process; None before."""
        return self._placement

    def begin(self, placement: dict[str, str]) -> None:
        """Name what the answers depend on once a model is loaded. May be called again, with the same.

        Raises BatchError if earlier answers were computed with another placement.
        """
        if self._placement is None:
            created = self.origin.created
            header = {"facts": self._facts, "created": created, "placement": placement}
            self._journal.begin(header, len(self.lines))
            self._placement = placement
        else:
            self._compare(self._placement, placement)

    def pending(self) -> Iterator[GivenLine]:
        """The lines that have no answer yet, first those that should take the longest; read as they are due.

        Lines that ``refuse`` answers are not among them.
        """
        for line in self.unanswered():
            yield GivenLine(line.index, line.number, self.lines.read(line.index))

    def unanswered(self) -> Iterator[LocatedLine]:
        """As ``pending``, with the places of the lines instead of their contents."""
        for index in self.lines.longest_first():
            if not self._has(index) and self.lines.refusal(index) is None:
                yield self.lines.locate(index)

    def refuse(self) -> None:
        """Answer the lines that are refused without a look at them: too long ones, and repeated ids."""
        for index in range(len(self.lines)):
            error = self.lines.refusal(index)
            if error is not None and not self._has(index):
                self.add(index, failure(self.origin, self.lines.number(index), self._line(index), error))

    def add(self, index: int, answer: bytes) -> None:
        """Keep the answer to a line; of two to one line, the first."""
        self._journal.add(index, answer)

    def finish(self) -> Written:
        """Write the output, in the order of the input, and remove the journal. All lines must have answers.

        The output appears whole, or not at all.
        """
        assert self._journal.count == len(self.lines)
        self._journal.sync()
        failed = 0
        try:
            with open(self.files.unnamed, "wb", buffering=_BUFFER_BYTES) as file:
                for answer in self._journal.answers():
                    failed += is_failure(answer)
                    file.write(answer + b"\n")
                file.flush()
                os.fsync(file.fileno())
            if os.path.lexists(self.files.output):
                raise BatchError(f"{self.files.output}: exists now; expected no other program to write it")
            os.rename(self.files.unnamed, self.files.output)
            sync_directory(self.files.output)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.files.unnamed)) from error
        self._journal.remove()
        self.written = Written(len(self.lines), failed)
        return self.written

    def _has(self, index: int) -> bool:
        return self._placement is not None and index in self._journal

    def _line(self, index: int) -> Line | None:
        """A line that is refused, if it is a JSON object."""
        if self.lines.length(index) > MAX_BYTES:
            return None
        try:
            return Line.parse(self.lines.number(index), self.lines.read(index))
        except LineError:
            return None

    def _checked_header(self) -> dict[str, Any] | None:
        """What an earlier process has begun with. Raises BatchError if it was something else."""
        header = self._journal.header
        if header is not None:
            self._compare(header["facts"], self._facts)
        return header

    def _compare(self, earlier: Mapping[str, str], now: Mapping[str, str]) -> None:
        for name in {**earlier, **now}:
            before, given = earlier.get(name), now.get(name)
            if before == given:
                continue
            if name in _DIGESTS:
                found = f"with another {name}"
            else:
                found = f"with {name} {short_repr(before)}, and now it is {short_repr(given)}"
            raise BatchError(f"{self._journal.path}: was begun {found}; expected the same, or another output")

    def _found_output(self) -> Written:
        """What an output holds that exists. Raises BatchError unless it is that of this batch."""
        failed, index = 0, 0
        with open(self.files.output, "rb", buffering=_BUFFER_BYTES) as file:
            while line := file.readline(_MAX_ANSWER_BYTES):
                number = self.lines.number(index) if index < len(self.lines) else 0
                if not line.startswith(beginning(self.origin, number)):
                    raise self._not_ours()
                failed += is_failure(line.removesuffix(b"\n"))
                index += 1
        if index != len(self.lines):
            raise self._not_ours()
        return Written(index, failed)

    def _not_ours(self) -> BatchError:
        return BatchError(
            f"{self.files.output}: exists, and is not what this input gives with these options; "
            f"expected a new name"
        )

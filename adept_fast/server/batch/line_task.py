"""LineTask: what a line asks of the engine, and how it is answered."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from adept_fast.engine.sequence import Generation, Request
from adept_fast.server.batch.line_error import LineError


class LineTask(ABC):
    """One line of a batch on its way through the engine."""

    @property
    @abstractmethod
    def requests(self) -> Sequence[Request]:
        """To the engine, at least one."""

    @abstractmethod
    def answer(self, generations: Sequence[Generation]) -> bytes:
        """The line of the output, from what its requests generated, without its end."""

    @abstractmethod
    def failure(self, error: LineError) -> bytes:
        """The line of the output that reports an error."""

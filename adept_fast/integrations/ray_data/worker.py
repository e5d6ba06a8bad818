"""Worker: a Runtime on a machine of a cluster, which answers shares of a batch."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from adept_fast.checkpoint import open_checkpoint
from adept_fast.checkpoint.fingerprint import fingerprint
from adept_fast.engine.runtime import Runtime
from adept_fast.integrations.ray_data.cluster import RayError
from adept_fast.integrations.ray_data.shares import given_lines
from adept_fast.server.batch.line_runner import Answered, LineRunner
from adept_fast.server.batch.origin import BatchOrigin
from adept_fast.server.batch.placement import placement_of
from adept_fast.server.settings import Settings
from adept_fast.system.json_text import json_text


@dataclass(frozen=True)
class Loading:
    """How each worker loads the model.

    Attributes:
        checkpoint: a path that every machine has, or a hub id.
        fingerprint: of the checkpoint where the batch was begun.
        settings: of ``Runtime.load``.
    """

    checkpoint: str
    revision: str | None
    fingerprint: str
    settings: dict[str, Any]


class Worker:
    """Answers blocks of lines; called by several threads, which share the steps of one engine.

    What fails is a row of the result, since Ray's errors quote tracebacks.

    Args:
        settings: the bounds of requests.
        begin: called with the numbers of the first and the last line before a block is begun.
    """

    def __init__(
        self,
        loading: Loading,
        settings: Settings,
        origin: BatchOrigin,
        begin: Callable[[int, int], None] = lambda first, last: None,
    ) -> None:
        self._begin = begin
        self._failure: str | None = None
        try:
            runtime = _loaded(loading)
        except (ValueError, OSError) as error:
            self._failure = str(error)
            return
        self._runner = LineRunner(runtime, settings, origin)
        self._placement = json_text(placement_of(runtime))

    def __call__(self, block: pa.Table) -> pa.Table:
        """The answers to a block of lines, a row for each, and what they depend on; or why there are none."""
        if self._failure is not None:
            return _table([], "", self._failure)
        lines = list(given_lines(block))
        try:
            self._begin(lines[0].number, lines[-1].number)
            return _table(list(self._runner.run(lines)), self._placement)
        except (ValueError, OSError) as error:
            return _table([], self._placement, str(error))


def _loaded(loading: Loading) -> Runtime:
    """Raises RayError if the checkpoint here is another one, and what ``Runtime.load`` raises."""
    checkpoint = open_checkpoint(
        loading.checkpoint, loading.revision, mmap=loading.settings["mmap"], progress=False
    )
    if fingerprint(checkpoint.path) != loading.fingerprint:
        raise RayError(
            f"{checkpoint.path}: is another checkpoint on the machine {platform.node()} than where the "
            f"batch was begun; expected the same files"
        )
    return Runtime.load(checkpoint, progress=False, **loading.settings)


def _table(answers: Sequence[Answered], placement: str, failure: str | None = None) -> pa.Table:
    rows = answers if failure is None else [Answered(-1, b"")]
    columns = {
        "index": pa.array([entry.index for entry in rows], pa.int64()),
        "answer": pa.array([entry.answer for entry in rows], pa.large_binary()),
        "prompt_tokens": pa.array([entry.prompt_tokens for entry in rows], pa.int64()),
        "completion_tokens": pa.array([entry.completion_tokens for entry in rows], pa.int64()),
        "placement": pa.array([placement] * len(rows), pa.string()),
        "failure": pa.array([failure] * len(rows), pa.string()),
    }
    return pa.table(columns)

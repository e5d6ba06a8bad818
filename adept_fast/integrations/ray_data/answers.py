"""The answers to a batch, computed by the workers of a cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import ray.data
from ray.data.datasource import Datasource
from ray.exceptions import RayError as FailedOnRay

from adept_fast.integrations.ray_data.attempts import limited_attempts
from adept_fast.integrations.ray_data.cluster import RayError, check_room, this_machine
from adept_fast.integrations.ray_data.shares import Shares, shares_of
from adept_fast.integrations.ray_data.worker import Loading, Worker
from adept_fast.server.batch.job import BatchJob
from adept_fast.server.batch.line_runner import Answered
from adept_fast.server.settings import Settings

# While the last lines of one share run, those of the next fill the slots that have become free.
_SHARES_AT_ONCE = 2
_SHARES_SENT = 4  # to a worker, those at once included
_LINES_OF_A_SLOT = 4


@dataclass(frozen=True)
class Workers:
    """How many workers there are, and what each gets of its machine."""

    count: int
    gpus: float
    cpus: float


@dataclass(frozen=True)
class AnsweredShare:
    """The answers to a share, and the placement of the model that gave them."""

    answers: list[Answered]
    placement: dict[str, str]


def answers_on_ray(
    job: BatchJob, loading: Loading, settings: Settings, workers: Workers
) -> Iterator[AnsweredShare]:
    """The answers to the lines that have none yet, share by share as they come.

    Ray has a share answered again whose worker has died. Raises RayError if no machine has room for a worker,
    if one cannot load the model, or if a share seems to kill them. A cluster must be connected.
    """
    lines_of_a_share = _LINES_OF_A_SLOT * int(loading.settings["max_batch_size"])
    shares = shares_of(job.files.input.resolve(), job.unanswered(), lines_of_a_share)
    if not shares:
        return
    check_room(workers.cpus, workers.gpus)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    source: Datasource = Shares(shares)
    answered = ray.data.read_datasource(
        source,
        num_cpus=0,
        concurrency=1,
        override_num_blocks=len(shares),
        label_selector={"ray.io/node-id": this_machine()},  # which has the input
    ).map_batches(
        Worker,
        batch_size=lines_of_a_share,
        batch_format="pyarrow",
        fn_constructor_args=(loading, settings, job.origin, limited_attempts()),
        num_cpus=workers.cpus,
        num_gpus=workers.gpus,
        compute=ray.data.ActorPoolStrategy(
            size=workers.count,
            max_tasks_in_flight_per_actor=_SHARES_SENT,
            max_concurrent_calls_per_actor=_SHARES_AT_ONCE,
            enable_true_multi_threading=True,
        ),
    )
    try:
        for block in answered.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from _answered_shares(block.to_pylist())
    except FailedOnRay as error:
        raise RayError(f"a worker failed: {_last_line(str(error))}") from error


def _answered_shares(rows: Sequence[dict[str, Any]]) -> Iterator[AnsweredShare]:
    """The rows that workers made, those of one placement together. Raises RayError if a worker failed."""
    for row in rows:
        if row["failure"] is not None:
            raise RayError(f"a worker failed: {row['failure']}")
    for placement in dict.fromkeys(row["placement"] for row in rows):
        names = [field.name for field in fields(Answered)]
        answers = [
            Answered(**{name: row[name] for name in names}) for row in rows if row["placement"] == placement
        ]
        yield AnsweredShare(answers, json.loads(placement))


def _last_line(message: str) -> str:
    """Of an error with a traceback in its message, what was raised."""
    return message.strip().rpartition("\n")[2]

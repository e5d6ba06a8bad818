"""RemoteService: the requests of an HTTP server to the replicas of a model."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from adept_fast.engine.scheduler import QueueFullError, check_room
from adept_fast.engine.sequence import Request
from adept_fast.integrations.ray_serve.messages import RemoteRequest
from adept_fast.integrations.ray_serve.remote_answer import RemoteAnswer
from adept_fast.server.answer_seconds import AnswerSeconds
from adept_fast.server.answering import Load, ModelDescription, ServiceStoppingError

_POLL_SECONDS = 0.05  # between looks at what still runs, while the service stops


class RemoteService:
    """Admits requests, and follows each to its end on whatever replicas there are.

    Args:
        model: as the replicas have it.
        call: sends a request to a replica; returns Serve's generator of its messages.
        replicas: returns how many there are now.
        slots: answers that a replica runs at the same time.
        max_queue: answers that may wait beyond them, for each replica.
    """

    failure: BaseException | None = None  # a replica that fails is replaced

    def __init__(
        self,
        model: ModelDescription,
        call: Callable[[RemoteRequest], Any],
        replicas: Callable[[], int],
        slots: int,
        max_queue: int,
    ) -> None:
        self.model = model
        self._call, self._replicas = call, replicas
        self._slots, self._max_queue = slots, max_queue
        self._answers: set[RemoteAnswer] = set()  # that are not finished
        self._answer_seconds = AnswerSeconds()
        self._is_stopping = False

    @property
    def is_ready(self) -> bool:
        """Whether requests are admitted; without a replica, they wait for one."""
        return not self._is_stopping

    def submit(self, requests: Sequence[Request]) -> list[RemoteAnswer]:
        """Send all requests, or none; on the event loop.

        A request without a seed gets one here, so that every replica gives the same answer. Raises
        ParameterError for more requests than ever fit, QueueFullError, and ServiceStoppingError.
        """
        if self._is_stopping:
            raise ServiceStoppingError("the server is stopping; expected requests before that")
        load, replicas = self.load(), self._counted_replicas()
        free, max_waiting = load.slots - load.running, replicas * self._max_queue
        try:
            check_room(len(requests), load.slots, max_waiting, waiting=load.waiting, free=free)
        except QueueFullError as error:
            error.retry_after_seconds = self._answer_seconds.until_room(load)
            raise
        return [self._begin(request) for request in requests]

    def load(self) -> Load:
        """How much there is to do now, on all replicas."""
        slots, count = self._slots * self._counted_replicas(), len(self._answers)
        return Load(slots, min(count, slots), max(0, count - slots))

    async def stop(self, grace_seconds: float) -> None:
        """Admit no more requests, let those that run or wait finish, and cancel what is left at last."""
        self._is_stopping = True
        deadline = time.monotonic() + grace_seconds
        while self._answers and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
        for answer in tuple(self._answers):
            answer.cancel()

    def _counted_replicas(self) -> int:
        """At least one: if there is none now, Serve is about to start one."""
        return max(1, self._replicas())

    def _begin(self, request: Request) -> RemoteAnswer:
        if request.params.seed is None:
            seeded = dataclasses.replace(request.params, seed=secrets.randbits(63))
            request = dataclasses.replace(request, params=seeded)
        answer = RemoteAnswer(self._call, request, self._ended)
        self._answers.add(answer)
        return answer

    def _ended(self, answer: RemoteAnswer) -> None:
        self._answers.discard(answer)
        self._answer_seconds.add(time.monotonic() - answer.submitted_at)

"""Replicas without Ray: Services of this process, which fail as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable

from adept_fast import Runtime
from adept_fast.integrations.ray_serve.message_stream import message_stream
from adept_fast.integrations.ray_serve.messages import Message, RemoteRequest
from adept_fast.integrations.ray_serve.remote_service import RemoteService
from adept_fast.server.answering import ModelDescription
from adept_fast.server.service import Service


class LostError(Exception):
    """The machine of a replica is gone."""


class MessageStream(AsyncIterator[Message]):
    """What a handle of Serve returns: messages, and ``cancel``."""

    def __init__(self, messages: AsyncGenerator[Message, None], lost_after: int | None) -> None:
        self._messages, self._left = messages, lost_after
        self.is_cancelled = False

    async def __anext__(self) -> Message:
        if self._left is not None:
            if self._left == 0:
                raise LostError
            self._left -= 1
        return await anext(self._messages)

    def cancel(self) -> None:
        self.is_cancelled = True
        asyncio.ensure_future(self._close())

    async def _close(self) -> None:
        await self._messages.aclose()


class LocalReplicas:
    """Sends each request to one Service, under the name of another replica each time.

    Args:
        lost_after: for each call in turn, the messages after which the replica is lost; None for not at all.
    """

    def __init__(self, service: Service, lost_after: Iterable[int | None] = ()) -> None:
        self._service, self._lost_after = service, iter(lost_after)
        self.requests: list[RemoteRequest] = []
        self.streams: list[MessageStream] = []

    def call(self, request: RemoteRequest) -> MessageStream:
        self.requests.append(request)
        name = f"replica {len(self.requests)}"
        stream = MessageStream(message_stream(self._service, name, request), next(self._lost_after, None))
        self.streams.append(stream)
        return stream

    def remote(
        self, runtime: Runtime, *, count: int = 1, slots: int = 8, max_queue: int = 128
    ) -> RemoteService:
        """What sends requests here, as if there were so many replicas."""
        model = ModelDescription(runtime.tokenizer, runtime.max_seq_len)
        return RemoteService(model, self.call, lambda: count, slots=slots, max_queue=max_queue)

"""Replica: a Runtime and the thread that steps it, on one machine of a Ray cluster."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import torch
from ray import serve

from adept_fast.engine.runtime import Runtime
from adept_fast.integrations.ray_serve.message_stream import message_stream
from adept_fast.integrations.ray_serve.messages import Message, RemoteRequest
from adept_fast.server.answering import ModelDescription
from adept_fast.server.logs import configure_own_logs, log, log_failure
from adept_fast.server.service import Service


class Replica:
    """Answers requests until its engine's thread dies; its health check fails then, and Serve replaces it.

    Args:
        loading: arguments of ``Runtime.load``.
        log_format: of the lines on standard error, which Ray collects.
    """

    async def __init__(self, loading: dict[str, Any], log_format: str) -> None:  # type: ignore[misc]
        configure_own_logs(log_format)
        self._name = serve.get_replica_context().replica_id.unique_id
        runtime = await asyncio.to_thread(Runtime.load, progress=False, **loading)
        self._runtime = runtime
        self._service = Service(runtime, on_failure=self._log_failure)
        self._service.start()
        log("ready", replica=self._name, **described(runtime))

    def describe(self) -> ModelDescription:
        """The model as requests see it."""
        return ModelDescription(self._runtime.tokenizer, self._runtime.max_seq_len)

    async def answer(self, request: RemoteRequest) -> AsyncGenerator[Message, None]:
        """The messages of one answer; see ``message_stream``."""
        async with contextlib.aclosing(message_stream(self._service, self._name, request)) as messages:
            async for message in messages:
                yield message

    async def check_health(self) -> None:
        """Raises RuntimeError once the engine's thread has died. Serve calls it every few seconds."""
        if self._service.failure is not None:
            raise RuntimeError(f"the engine failed: {self._service.failure}")

    async def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # the model could not be loaded
            await self._service.stop(0)
            self._runtime.close()

    def _log_failure(self) -> None:
        assert self._service.failure is not None
        log_failure("the engine failed", self._service.failure, replica=self._name)


def described(runtime: Runtime) -> dict[str, Any]:
    """What a replica chose, for the log."""
    placement = runtime.placement
    return {
        "device": str(placement.device),
        "threads": torch.get_num_threads() if placement.device.type == "cpu" else None,
        "ranks": runtime.ranks,
        "dtype": str(placement.dtype).removeprefix("torch."),
        "dtype_reason": placement.dtype_reason,
        "weights": placement.weights,
        "layout": placement.layout,
        "slots": runtime.max_batch_size,
        "context": runtime.max_seq_len,
        "step_tokens": runtime.engine.step_tokens,
        "load_seconds": round(runtime.load_seconds, 2),
    }

"""PrefixRouter: has Ray Serve send each answer to the replica that Balance chooses."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from adept_fast.integrations.ray_serve.balance import Balance
from adept_fast.integrations.ray_serve.live_replicas import set_live_replicas
from adept_fast.integrations.ray_serve.messages import RemoteRequest
from adept_fast.integrations.ray_serve.prefixes import prefix_hashes

_REPLACEMENT_SECONDS = 15.0  # for a replica in place of one that failed


class PrefixRouter(RequestRouter):  # type: ignore[misc]
    """Answers wait here until a replica has room, first come, first served; Serve counts them as queued.

    Calls that are no answers may go to any replica.
    """

    def initialize_state(self, *, slots: int) -> None:
        """``slots``: answers that a replica runs at the same time."""
        self._balance = Balance(slots)
        self._turn = asyncio.Lock()  # who has it is the next to get room
        self._room = asyncio.Event()

    @property
    def max_num_routing_tasks(self) -> int:
        """One for each request that waits, as it only waits for an event."""
        return 2**31

    @property
    def supports_rejection_protocol(self) -> bool:
        """Replicas take what they are sent, since this router counts what that is."""
        return False

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        self._replicas_changed()

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._replicas_changed()

    def on_send_request(self, replica_id: ReplicaID) -> None:
        super().on_send_request(replica_id)
        self._balance.sent(replica_id.unique_id)

    def decrement_queue_len_cache(self, replica_id: ReplicaID) -> None:
        super().decrement_queue_len_cache(replica_id)
        self._balance.done(replica_id.unique_id)
        self._room.set()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        arguments: list[Any] = [] if pending_request is None else list(pending_request.args)
        if not arguments or not isinstance(arguments[0], RemoteRequest):
            return [candidate_replicas]
        chosen = await self._chosen(arguments[0])
        return [[replica for replica in candidate_replicas if replica.replica_id.unique_id == chosen]]

    async def _chosen(self, request: RemoteRequest) -> str:
        hashes = prefix_hashes(request.prompt_ids, request.cache_scope)
        if request.avoid:
            return await self._chosen_again(hashes, request.avoid)
        async with self._turn:
            return await self._with_room(lambda: self._balance.choose(hashes))

    async def _chosen_again(self, hashes: Sequence[int], avoid: Collection[str]) -> str:
        """A replica for a request that others failed to answer; it was accepted before those that wait.

        If there is no other replica, Serve is about to start one, unless the one that failed recovers.
        """
        choose = functools.partial(self._balance.choose, hashes, is_urgent=True)
        try:
            return await asyncio.wait_for(self._with_room(lambda: choose(avoid=avoid)), _REPLACEMENT_SECONDS)
        except asyncio.TimeoutError:
            return await self._with_room(choose)

    async def _with_room(self, choose: Callable[[], str | None]) -> str:
        while (chosen := choose()) is None:
            self._room.clear()
            await self._room.wait()
        return chosen

    def _replicas_changed(self) -> None:
        self._balance.set_replicas(replica_id.unique_id for replica_id in self.curr_replicas)
        set_live_replicas(self.app_name, len(self.curr_replicas))
        self._room.set()

"""Balance: which replica answers next, by what each has to do and which prompts it has read."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence

from adept_fast.integrations.ray_serve.prefixes import PrefixMemory

CHOSEN_SECONDS = 5.0  # that a choice counts although nothing was sent; its client may have left meanwhile
_PROMPTS_PER_SLOT = 16  # that are remembered: the turns of the conversations that a replica's cache may hold


class Balance:
    """Counts the answers of each replica, and chooses a replica for the next one.

    Args:
        slots: answers that a replica runs at the same time.
        clock: the time in seconds.
    """

    def __init__(self, slots: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._slots, self._clock = slots, clock
        # A few more wait in the replica itself, so that it need not wait for one when a slot becomes free.
        self._limit = slots + -(-slots // 4)
        self._memory = PrefixMemory(slots * _PROMPTS_PER_SLOT)
        self._sent: dict[str, int] = {}  # answers that have not ended
        self._chosen: dict[str, deque[float]] = {}  # the times of choices after which nothing was sent yet

    @property
    def replicas(self) -> Collection[str]:
        """Those to choose from."""
        return self._sent.keys()

    def set_replicas(self, replicas: Iterable[str]) -> None:
        """Choose among these from now on."""
        self._sent = {replica: self._sent.get(replica, 0) for replica in replicas}
        self._chosen = {replica: self._chosen.get(replica, deque()) for replica in self._sent}
        self._memory.keep(self._sent)

    def choose(
        self, hashes: Sequence[int], *, avoid: Collection[str] = (), is_urgent: bool = False
    ) -> str | None:
        """A replica for a prompt, which counts as chosen until ``sent``; None if there is none with room.

        It is the one that has read the longest beginning of the prompt, if a slot of it is free; else the
        one with the fewest answers.

        Args:
            hashes: ``prefix_hashes`` of the prompt.
            avoid: replicas that may not be chosen.
            is_urgent: also choose a replica that has enough to do.
        """
        loads = {replica: self.load(replica) for replica in self._sent if replica not in avoid}
        if not loads:
            return None
        readers = self._memory.readers(hashes)
        best = next((replica for replica in readers if loads.get(replica, self._slots) < self._slots), None)
        if best is None:
            best = min(loads, key=lambda replica: loads[replica])
            if loads[best] >= self._limit and not is_urgent:
                return None
        self._memory.add(best, hashes)
        self._chosen[best].append(self._clock())
        return best

    def load(self, replica: str) -> int:
        """How many answers a replica runs, or is about to."""
        chosen = self._chosen[replica]
        while chosen and chosen[0] <= self._clock() - CHOSEN_SECONDS:
            chosen.popleft()
        return self._sent[replica] + len(chosen)

    def sent(self, replica: str) -> None:
        """A request was sent to a replica, which had been chosen for it."""
        if replica in self._sent:
            self._sent[replica] += 1
            if self._chosen[replica]:
                self._chosen[replica].popleft()

    def done(self, replica: str) -> None:
        """A request that was sent to a replica has ended, in whatever way."""
        if replica in self._sent:
            self._sent[replica] = max(0, self._sent[replica] - 1)

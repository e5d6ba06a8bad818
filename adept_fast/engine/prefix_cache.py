"""PrefixCache: the tokens whose keys and values each slot of the cache still holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MIN_COPIED_TOKENS = 16  # a shorter prefix is read again, which costs no more than to copy it


@dataclass(frozen=True)
class HeldTokens:
    """The tokens that a slot holds, from position 0 on, and the scope in which they may be reused."""

    ids: list[int]
    scope: str = ""


@dataclass(frozen=True)
class PrefixCopy:
    """The keys and values of a slot's first tokens, to be copied into another slot."""

    source: int
    destination: int
    tokens: int


class PrefixCache:
    """What the free slots hold, and which of them a new sequence takes.

    A slot keeps its keys and values until another sequence takes it. Keys and values depend on the tokens up
    to their position only, so a sequence that begins with the same tokens need not read them again.
    """

    def __init__(self, slots: int) -> None:
        self._kept = [HeldTokens([])] * slots
        self._last_used = [0] * slots  # a count of releases; 0 for a slot that holds nothing
        self._releases = 0

    def kept(self, slot: int) -> HeldTokens:
        """What a free slot holds."""
        return self._kept[slot]

    def keep(self, slot: int, held: HeldTokens) -> None:
        """Record what a slot holds whose sequence has ended."""
        self._releases += 1
        self._kept[slot] = held
        self._last_used[slot] = self._releases if held.ids else 0

    def take(self, free: Iterable[int], wanted: HeldTokens) -> tuple[int, int]:
        """The free slot for a sequence, and how many of its first tokens the slot holds.

        It is the slot with the longest common prefix, if this is at least half of what the slot holds. Else
        that slot's other tokens are worth more than a copy of the prefix, and it is the one used least
        recently. What it held is forgotten.
        """
        free = list(free)
        oldest = min(free, key=lambda slot: self._last_used[slot])
        lengths = {slot: common_prefix(self._kept[slot], wanted) for slot in free}
        best = max(free, key=lambda slot: lengths[slot])
        slot = best if 2 * lengths[best] >= len(self._kept[best].ids) and lengths[best] else oldest
        self.keep(slot, HeldTokens([]))
        return slot, lengths[slot]


def common_prefix(held: HeldTokens, wanted: HeldTokens) -> int:
    """How many first tokens of ``wanted`` are held; none in another scope."""
    if held.scope != wanted.scope:
        return 0
    low, high = 0, min(len(held.ids), len(wanted.ids))
    if held.ids[:MIN_COPIED_TOKENS] != wanted.ids[:MIN_COPIED_TOKENS]:  # most have nothing in common
        high = min(high, MIN_COPIED_TOKENS)
    while low < high:  # slices are compared in C
        middle = (low + high + 1) // 2
        low, high = (middle, high) if held.ids[low:middle] == wanted.ids[low:middle] else (low, middle - 1)
    return low

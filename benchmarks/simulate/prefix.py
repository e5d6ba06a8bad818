"""PrefixSlots: the prefix cache of adept_fast.engine.prefix_cache, on lengths in place of tokens."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.simulate.request import Request

MIN_COPIED_TOKENS = 16  # as adept_fast.engine.prefix_cache has it, which imports torch; a test compares them


@dataclass(frozen=True)
class Held:
    """The first ``tokens`` of a conversation, of which all prompts have the first ``shared``."""

    conversation: int
    tokens: int
    shared: int


NOTHING = Held(-1, 0, 0)


def wanted(request: Request) -> Held:
    """The tokens that may be reused: the last one of a prompt is read for its logits."""
    return Held(request.conversation, request.prompt_tokens - 1, request.shared)


def common(held: Held, other: Held) -> int:
    """How many first tokens two sequences have in common."""
    shorter = min(held.tokens, other.tokens)
    if held.conversation == other.conversation:
        return shorter
    return min(shorter, held.shared, other.shared)


class PrefixSlots:
    """What free slots hold, and which of them a request takes."""

    def __init__(self, slots: int) -> None:
        self.kept = [NOTHING] * slots
        self._last_used = [0] * slots
        self._releases = 0

    def keep(self, slot: int, held: Held) -> None:
        """Record what a slot holds whose request has ended."""
        self._releases += 1
        self.kept[slot] = held
        self._last_used[slot] = self._releases if held.tokens else 0

    def take(self, free: list[int], request: Request) -> tuple[int, int]:
        """The slot for a request, and how many tokens of its prompt the slot holds."""
        target = wanted(request)
        lengths = {slot: common(self.kept[slot], target) for slot in free}
        best = max(free, key=lambda slot: lengths[slot])
        is_kept = lengths[best] and 2 * lengths[best] >= self.kept[best].tokens
        slot = best if is_kept else min(free, key=lambda slot: self._last_used[slot])
        self.keep(slot, NOTHING)
        return slot, lengths[slot]

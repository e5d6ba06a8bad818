"""PrefixMemory: which replicas read which prompts, so that a conversation finds its beginning cached."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

from adept_fast.engine.prefix_cache import MIN_COPIED_TOKENS

_MODULUS = 2**61 - 1
_BASE = secrets.randbelow(_MODULUS - 2**32) + 2**32  # nobody can write prompts whose hashes meet


def prefix_hashes(ids: Sequence[int], scope: str = "") -> list[int]:
    """A hash of each beginning of a prompt: ``[0]`` of its first token, ``[-1]`` of all.

    Args:
        scope: prompts of different scopes have nothing in common, as in the engine's prefix cache.
    """
    value = hash(scope) % _MODULUS
    hashes = []
    for token_id in ids:
        value = (value * _BASE + token_id + 1) % _MODULUS
        hashes.append(value)
    return hashes


class PrefixMemory:
    """Whole prompts, each as one hash of all its tokens, of the replicas that read them.

    A prompt that goes on where a remembered one ends belongs to the same conversation, or repeats its
    request. What two prompts have in common otherwise, as a system's message, says nothing here: all new
    conversations would go to one replica.

    Args:
        prompts: remembered for each replica; those used least recently are forgotten.
    """

    def __init__(self, prompts: int) -> None:
        self._prompts = prompts
        self._of_replica: dict[str, OrderedDict[int, None]] = {}
        self._replicas: dict[int, dict[str, None]] = {}  # that read the prompt, the latest one last

    def __len__(self) -> int:
        """How many prompts are remembered, of all replicas."""
        return sum(map(len, self._of_replica.values()))

    def add(self, replica: str, hashes: Sequence[int]) -> None:
        """Remember that a replica reads a prompt, unless it is so short that a cache saves no time."""
        if len(hashes) < MIN_COPIED_TOKENS:
            return
        own, whole = self._of_replica.setdefault(replica, OrderedDict()), hashes[-1]
        own[whole] = None
        own.move_to_end(whole)
        known = self._replicas.setdefault(whole, {})
        known.pop(replica, None)
        known[replica] = None
        if len(own) > self._prompts:
            self._forget(own.popitem(last=False)[0], replica)

    def keep(self, replicas: Iterable[str]) -> None:
        """Forget all other replicas."""
        for gone in self._of_replica.keys() - set(replicas):
            for whole in self._of_replica.pop(gone):
                self._forget(whole, gone)

    def readers(self, hashes: Sequence[int]) -> Iterator[str]:
        """The replicas that read a beginning of a prompt, those of the longest one first."""
        for value in reversed(hashes):
            yield from reversed(self._replicas.get(value, {}))

    def _forget(self, whole: int, replica: str) -> None:
        known = self._replicas[whole]
        del known[replica]
        if not known:
            del self._replicas[whole]

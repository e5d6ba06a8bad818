"""Prompt lookup: guessing the next tokens from what followed the last ones where they stood before.

A step over a few tokens reads the weights once, as a step over one does, so guesses are worth checking: all
at once, each by the token that would have been chosen there anyway. Where text repeats, as in code, summaries
and answers that quote, several tokens come of one step; the text is the same (Saxena, "Prompt Lookup
Decoding", 2023).
"""

from __future__ import annotations

from collections.abc import Iterable

_MATCHED = (3, 2)  # how many last tokens are looked up; more first, as they say more


class PromptLookup:
    """The tokens of a prompt and the text so far, and where each few of them last stood."""

    def __init__(self, ids: Iterable[int]) -> None:
        self._ids: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}  # tokens → the place after them
        for token_id in ids:
            self.push(token_id)

    def push(self, token_id: int) -> None:
        """One more token."""
        for count in _MATCHED:
            if len(self._ids) >= count:
                self._next[tuple(self._ids[-count:])] = len(self._ids)
        self._ids.append(token_id)

    def draft(self, count: int) -> list[int]:
        """``count`` tokens that may come next, or none.

        What followed is taken as going on and on where it reaches the end of the text.
        """
        for matched in _MATCHED:
            place = self._next.get(tuple(self._ids[-matched:])) if len(self._ids) >= matched else None
            if place is not None:
                period = len(self._ids) - place
                return [self._ids[place + i % period] for i in range(count)]
        return []


def kept_tokens(chosen: list[int], drafts: list[int]) -> list[int]:
    """Of what was chosen after the last token and after each guess, what would have been chosen one by one.

    What follows a guess counts if that guess is what was chosen in its place.
    """
    right = 0
    while right < len(drafts) and drafts[right] == chosen[right]:
        right += 1
    return chosen[: 1 + right]

"""Prompt lookup: drafts of the next tokens, copied from an earlier occurrence of the last ones.

A step over a few tokens reads the weights once, like a step over one. So the step also checks a draft: each
drafted token is kept if it equals the token that the model would have chosen there. If the text repeats, as
in code, summaries and answers that quote, a step yields several tokens. The text is the same (Saxena,
"Prompt Lookup Decoding", 2023).
"""

from __future__ import annotations

from collections.abc import Iterable

_NGRAM_SIZES = (3, 2)  # the last tokens that are looked up; the longer match predicts better


class PromptLookup:
    """The tokens of a prompt and of the text so far, with an index of their n-grams."""

    def __init__(self, ids: Iterable[int]) -> None:
        self._ids: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}  # n-gram → index of the token after its last occurrence
        for token_id in ids:
            self.push(token_id)

    def push(self, token_id: int) -> None:
        """Add a token."""
        for size in _NGRAM_SIZES:
            if len(self._ids) >= size:
                self._next[tuple(self._ids[-size:])] = len(self._ids)
        self._ids.append(token_id)

    def draft(self, count: int) -> list[int]:
        """``count`` tokens that may come next, or none.

        If fewer tokens follow the earlier occurrence, they are repeated.
        """
        for size in _NGRAM_SIZES:
            start = self._next.get(tuple(self._ids[-size:])) if len(self._ids) >= size else None
            if start is not None:
                period = len(self._ids) - start
                return [self._ids[start + i % period] for i in range(count)]
        return []


def kept_tokens(chosen: list[int], drafts: list[int]) -> list[int]:
    """The tokens that steps without drafts would have chosen.

    Args:
        chosen: after the last token, and after each drafted token; one more than ``drafts``.
    """
    accepted = 0
    while accepted < len(drafts) and drafts[accepted] == chosen[accepted]:
        accepted += 1
    return chosen[: 1 + accepted]

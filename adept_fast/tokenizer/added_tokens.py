"""Added tokens: strings that are found in a text before the rest is tokenized."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# Unicode's White_Space; Python's own notion has four more characters.
_WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_JOINERS = "\u200c\u200d"
# Letters, although Unicode's categories call them symbols.
_CIRCLED = (
    ("\u24b6", "\u24e9"),
    ("\U0001f130", "\U0001f149"),
    ("\U0001f150", "\U0001f169"),
    ("\U0001f170", "\U0001f189"),
)


@dataclass(frozen=True)
class AddedToken:
    """A token that was added to a vocabulary, with the flags of the tokenizers library.

    ``single_word``: no letter or digit may be next to it. ``lstrip``, ``rstrip``: it includes the white space
    before, after it. ``normalized``: it is found in normalised text. ``special``: it is not part of answers.
    """

    token_id: int
    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = False


class TokenFinder:
    """Finds tokens in text, from left to right; if several begin at one character, the longest.

    Args:
        tokens: (its text, the token).
        ignored: ids that are found, so that no other token is there, but stay text.
    """

    def __init__(
        self, tokens: Iterable[tuple[str, AddedToken]], ignored: frozenset[int] = frozenset()
    ) -> None:
        self._tokens = {text: token for text, token in tokens if text}
        self._ignored = ignored
        self._lengths: dict[str, list[int]] = {}
        for text in self._tokens:
            lengths = self._lengths.setdefault(text[0], [])
            if len(text) not in lengths:
                lengths.append(len(text))
        for lengths in self._lengths.values():
            lengths.sort(reverse=True)
        firsts = "".join(map(re.escape, self._lengths))
        self._first = re.compile(f"[{firsts}]") if firsts else None

    def __bool__(self) -> bool:
        return bool(self._tokens)

    def split(self, text: str) -> Iterator[str | int]:
        """The ids that were found and the text between them, which is never empty, in order."""
        done = 0
        for start, end, token in self._matches(text):
            if token.token_id in self._ignored:
                continue
            if token.single_word and (
                (start > 0 and _is_word(text[start - 1])) or (end < len(text) and _is_word(text[end]))
            ):
                continue
            if token.lstrip and (stripped := len(text[:start].rstrip(_WHITE_SPACE))) < start:
                start = max(done, stripped)
            if token.rstrip:
                end = len(text) - len(text[end:].lstrip(_WHITE_SPACE))
            if start > done:
                yield text[done:start]
            if start < end:  # else the previous token includes all of its white space
                yield token.token_id
            done = end
        if done < len(text):
            yield text[done:]

    def _matches(self, text: str) -> Iterator[tuple[int, int, AddedToken]]:
        """Start, end and token of matches that do not overlap."""
        at = 0
        while self._first is not None and (found := self._first.search(text, at)) is not None:
            at = found.start()
            for length in self._lengths[found[0]]:
                token = self._tokens.get(text[at : at + length])
                if token is not None:
                    yield at, at + length, token
                    at += length
                    break
            else:
                at += 1


def _is_word(character: str) -> bool:
    r"""Whether ``\w`` matches it in the regular expressions of the tokenizers library."""
    category = unicodedata.category(character)
    return (
        category[0] in "LM"
        or category in ("Nd", "Nl", "Pc")
        or character in _JOINERS
        or any(first <= character <= last for first, last in _CIRCLED)
    )

"""The text of single tokens, and where each begins in a text."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

from adept_fast.tokenizer.tokenizer import StreamingDetokenizer, Tokenizer


@functools.lru_cache(maxsize=2**16)
def token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    """The bytes that a token adds to a text; the name of one that has no text."""
    byte = tokenizer.byte_value(token_id)
    if byte is not None:
        return bytes([byte])
    vocabulary = tokenizer.vocabulary
    text = vocabulary.text_inside(token_id) or vocabulary.shown_name(token_id)
    return text.encode("utf-8")


def token_text(raw: bytes) -> str:
    """The text of a token's bytes; ``bytes:\\xe2`` for a part of a character."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


class TextOffsets:
    """The character at which each token of a text begins; the bytes of one character share it.

    ``length`` is that of the text so far, without bytes of a character that is not complete.

    Args:
        after: tokens before the text, which does not include theirs.
        length: where the text's first token begins.
    """

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int] = (), length: int = 0) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = StreamingDetokenizer(tokenizer)
        self._detokenizer.skip(after)
        self.length = length

    def extend(self, token_ids: Iterable[int]) -> list[int]:
        """The offsets of the next tokens."""
        return [self._push(token_id) for token_id in token_ids]

    def _push(self, token_id: int) -> int:
        if self._tokenizer.byte_value(token_id) is not None:
            self.length += len(self._detokenizer.push(token_id))
            # The last character of the piece is the byte's own, unless it still waits for others.
            return self.length if self._detokenizer.holds_bytes else self.length - 1
        self.length += len(self._detokenizer.finish())  # else it would count as this token's
        offset = self.length
        self.length += len(self._detokenizer.push(token_id))
        return offset

"""Vocabulary: the interface of the files that map text to token ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol


class TokenizerError(ValueError):
    """A tokenizer file that cannot be read, or text or ids that it does not allow."""


class Vocabulary(Protocol):
    """Ids and their pieces, added tokens included.

    ``size`` is one more than the largest id. A smaller id may have no piece, and then has no text.
    """

    @property
    def size(self) -> int: ...

    @property
    def files(self) -> Mapping[str, bytes]:
        """Name → contents of the files that store this vocabulary."""
        ...

    @property
    def model(self) -> bytes:
        """The sentencepiece model. Raises TokenizerError if there is none."""
        ...

    @property
    def splits_special_tokens(self) -> bool:
        """Whether the name of a special token in text is plain text."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of text that UTF-8 can express, without BOS."""
        ...

    def encode_with_names(self, text: str) -> list[int]:
        """The same, but tokens that are only named as special are found in text too."""
        ...

    def find(self, piece: str) -> int | None:
        """The id of a piece or an added token."""
        ...

    def piece(self, token_id: int) -> str: ...

    def score(self, token_id: int) -> float: ...

    def is_control(self, token_id: int) -> bool:
        """Whether it has no text except its name: control pieces and special added tokens."""
        ...

    def is_unknown(self, token_id: int) -> bool: ...

    def byte_value(self, token_id: int) -> int | None:
        """The byte that a byte-fallback piece stands for, else None."""
        ...

    def text_at_start(self, ids: Sequence[int]) -> str:
        """The text of ids at the beginning of a text, which loses the space before its first word."""
        ...

    def text_inside(self, token_id: int) -> str:
        """The text of one id after other text."""
        ...

    def shown_name(self, token_id: int) -> str:
        """The name of a token without text, as text."""
        ...

    def name_at_start(self, token_id: int) -> str:
        """The same at the beginning of a text."""
        ...

    def own_end(self) -> int | None:
        """The end token of the file itself."""
        ...

    def own_bos(self) -> int | None:
        """The BOS token of the file itself."""
        ...


def require_text(text: str) -> None:
    """Raises TokenizerError for text with a lone surrogate, which UTF-8 cannot express."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"the text holds a lone surrogate at character {error.start}, which UTF-8 cannot express"
        ) from error


def is_text(text: str) -> bool:
    """Whether UTF-8 can express a text."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def pieces_of(vocabulary: Vocabulary) -> Iterator[str]:
    """All pieces, in the order of their ids."""
    return (vocabulary.piece(token_id) for token_id in range(vocabulary.size))

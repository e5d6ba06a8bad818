"""A vocabulary in a sentencepiece model (``tokenizer.model``), with added tokens."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import sentencepiece

from adept_fast.system.regular_file import why_unreadable
from adept_fast.tokenizer.added_tokens import AddedToken, TokenFinder
from adept_fast.tokenizer.vocabulary import TokenizerError, is_text

_SPACE = "▁"
# A normalizer_spec, which protobuf merges into the model's own: text is left as it is.
_LEFT_AS_IT_IS = b"\x1a\x10\x0a\x08identity\x12\x00\x18\x00\x20\x00"


class SentencePieceVocabulary:
    """A sentencepiece model and added tokens.

    Args:
        model: the bytes of a ``tokenizer.model``.
        source: its name in errors.
        added: tokens that are found in text; a piece with a token's name has the same id.
        named: tokens that are only named as special, such as ``bos_token``.
        splits_special_tokens: whether special tokens are never found in text.
        prefixes_names: whether a token of normalised text is found only where the ▁ of a word is before it.

    Raises TokenizerError if the bytes are not a sentencepiece model, or if two tokens share an id or a name.
    """

    def __init__(
        self,
        model: bytes,
        source: str,
        *,
        added: Iterable[AddedToken] = (),
        named: Iterable[AddedToken] = (),
        splits_special_tokens: bool = False,
        prefixes_names: bool = True,
    ) -> None:
        self.model = model
        self.source = source
        self.splits_special_tokens = splits_special_tokens
        self._processor = _read_processor(model, source)
        self.pieces: int = self._processor.vocab_size()
        self.added = tuple(added)
        self._named = (*self.added, *named)
        self.prefixes_names = prefixes_names and any(token.normalized for token in self.added)
        self._by_id: dict[int, AddedToken] = {}
        self._by_name: dict[str, AddedToken] = {}
        for token in self.added:
            self._add(token)
        self.size: int = max([self.pieces, *(token.token_id + 1 for token in self.added)])

    @property
    def files(self) -> Mapping[str, bytes]:
        return {"tokenizer.model": self.model}

    def encode(self, text: str) -> list[int]:
        return self._encode(text, self._finders)

    def encode_with_names(self, text: str) -> list[int]:
        return self._encode(text, self._named_finders)

    def find(self, piece: str) -> int | None:
        if piece in self._by_name:
            return self._by_name[piece].token_id
        return self._find_piece(piece)

    def piece(self, token_id: int) -> str:
        if token_id in self._by_id:
            return self._by_id[token_id].content
        text: str = self._processor.id_to_piece(token_id) if token_id < self.pieces else ""
        return text

    def score(self, token_id: int) -> float:
        score: float = self._processor.get_score(token_id) if token_id < self.pieces else 0.0
        return score

    def is_control(self, token_id: int) -> bool:
        if token_id in self._by_id:
            return self._by_id[token_id].special
        return token_id >= self.pieces or bool(self._processor.is_control(token_id))

    def is_unknown(self, token_id: int) -> bool:
        return token_id < self.pieces and bool(self._processor.is_unknown(token_id))

    def byte_value(self, token_id: int) -> int | None:
        is_byte = token_id < self.pieces and self._processor.is_byte(token_id)
        return int(self._processor.id_to_piece(token_id)[3:5], 16) if is_byte else None

    def text_at_start(self, ids: Sequence[int]) -> str:
        ids = [token_id for token_id in ids if not self.is_control(token_id)]
        pieces = list(itertools.takewhile(lambda token_id: token_id not in self._by_id, ids))
        text: str = self._processor.decode(pieces)
        rest = ids[len(pieces) :]
        if rest and not pieces:
            text, rest = self.name_at_start(rest[0]), rest[1:]
        return text + "".join(map(self.text_inside, rest))

    def text_inside(self, token_id: int) -> str:
        return "" if self.is_control(token_id) else self.shown_name(token_id)

    def shown_name(self, token_id: int) -> str:
        if self.is_unknown(token_id):
            text: str = self._processor.decode([token_id])
            return text
        name = self.piece(token_id)
        if token_id in self._by_id and self._by_id[token_id].normalized:
            name = self._searched(name)  # its text, with a leading ▁ too if names have one
        return name.replace(_SPACE, " ")

    def name_at_start(self, token_id: int) -> str:
        return self.shown_name(token_id).removeprefix(" " if self._has_prefix else "")

    def own_end(self) -> int | None:
        return self._valid(self._processor.eos_id())

    def own_bos(self) -> int | None:
        return self._valid(self._processor.bos_id())

    def _add(self, token: AddedToken) -> None:
        name = f"{self.source}: the added token {token.content!r:.80}"
        if not token.content or not is_text(token.content):
            raise TokenizerError(f"{name} of id {token.token_id} is no text; expected at least one character")
        piece = self._processor.id_to_piece(token.token_id) if token.token_id < self.pieces else token.content
        own = self._find_piece(token.content)
        if piece != token.content:
            raise TokenizerError(f"{name} has the id {token.token_id}, which is that of the piece {piece!r}")
        if own not in (None, token.token_id):
            raise TokenizerError(f"{name} has the id {token.token_id}; its piece has {own}")
        for other in (self._by_id.get(token.token_id), self._by_name.get(token.content)):
            if other is not None:
                raise TokenizerError(
                    f"{name} has the id {token.token_id}; expected no other than {other.content!r:.80} has, "
                    f"which is {other.token_id}"
                )
        self._by_id[token.token_id] = self._by_name[token.content] = token

    def _find_piece(self, piece: str) -> int | None:
        if not self.pieces or not is_text(piece):
            return None
        # sentencepiece returns the unknown id for a piece that it lacks.
        token_id: int = self._processor.piece_to_id(piece)
        return token_id if self._processor.id_to_piece(token_id) == piece else None

    def _valid(self, token_id: int) -> int | None:
        return token_id if 0 <= token_id < self.pieces else None

    @functools.cached_property
    def _finders(self) -> tuple[TokenFinder, TokenFinder]:
        return self._finders_of(self.added)

    @functools.cached_property
    def _named_finders(self) -> tuple[TokenFinder, TokenFinder]:
        return self._finders_of(self._named)

    def _finders_of(self, tokens: tuple[AddedToken, ...]) -> tuple[TokenFinder, TokenFinder]:
        """Of tokens that are found in plain text, and in normalised text."""
        split = self.splits_special_tokens
        ignored = frozenset(token.token_id for token in tokens if split and token.special)
        searched = self._searched
        return (
            TokenFinder([(token.content, token) for token in tokens if not token.normalized], ignored),
            TokenFinder([(searched(token.content), token) for token in tokens if token.normalized], ignored),
        )

    def _encode(self, text: str, finders: tuple[TokenFinder, TokenFinder]) -> list[int]:
        in_text, in_normalized = finders
        ids: list[int] = []
        for part in in_text.split(text) if in_text else (text,):
            if isinstance(part, int):
                ids.append(part)
            elif in_normalized:
                ids += self._encode_normalized(part, in_normalized)
            else:
                ids += self._processor.encode(part)
        return ids

    def _normalize(self, text: str) -> str:
        try:
            normalized: str = self._processor.normalize(text)
        except UnicodeDecodeError as error:
            raise TokenizerError(f"{self.source}: its table of normalized text is not UTF-8") from error
        return normalized

    @functools.cached_property
    def _has_prefix(self) -> bool:
        return self._normalize("a").startswith(_SPACE)

    def _searched(self, text: str) -> str:
        """Normalised text as tokens are found in it; unless names have a prefix, it has none either."""
        normalized = self._normalize(text)
        if self.prefixes_names or not self._has_prefix or normalized.startswith(_SPACE * 2):
            return normalized
        return normalized.removeprefix(_SPACE)

    def _encode_normalized(self, text: str, finder: TokenFinder) -> Iterator[int]:
        parts = list(finder.split(self._searched(text)))
        if not any(isinstance(part, int) for part in parts):
            yield from self._processor.encode(text)
            return
        for part in parts:
            if isinstance(part, int):
                yield part
                continue
            lacks_prefix = self._has_prefix and not self.prefixes_names and not part.startswith(_SPACE)
            yield from self._of_normalized.encode(_SPACE + part if lacks_prefix else part)

    @functools.cached_property
    def _of_normalized(self) -> sentencepiece.SentencePieceProcessor:
        """The same model, for text that is already normalised."""
        return _read_processor(self.model + _LEFT_AS_IT_IS, self.source)


def _read_processor(model: bytes, source: str) -> sentencepiece.SentencePieceProcessor:
    if not model:
        raise TokenizerError(f"{source}: not a sentencepiece model (the file is empty)")
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        reason = f"not a sentencepiece model ({error})"
        raise TokenizerError(why_unreadable(source, model, reason)) from error
    try:
        processor.id_to_piece(list(range(processor.vocab_size())))
        if 0 <= processor.unk_id() < processor.vocab_size():
            processor.decode([processor.unk_id()])  # its text comes from the model too
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"{source}: a piece is not UTF-8 text ({error.reason} {error.object[:20]!r})"
        ) from error
    return processor

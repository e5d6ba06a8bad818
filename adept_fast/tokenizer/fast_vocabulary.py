"""A vocabulary in a ``tokenizer.json``, as transformers saves it without a sentencepiece model."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from adept_fast.tokenizer.added_tokens import AddedToken
from adept_fast.tokenizer.decoder_steps import decoder_steps
from adept_fast.tokenizer.vocabulary import TokenizerError, is_text

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_LARGEST_ID = 2**31 - 1
_LARGEST_GROWTH = 2**10  # characters that normalisation may make of one


class FastVocabulary:
    """A ``tokenizer.json``, read by the tokenizers library, with tokens that other files add.

    Args:
        contents: of the file.
        source: its name in errors.
        added: tokens, which may already be in the file.
        named: the names of special tokens; unknown ones are ignored.
        splits_special_tokens: whether special tokens are never found in text.

    Raises TokenizerError if the library cannot read it or is not installed, if its decoder is of an unknown
    kind, or if an added token gets another id than the files say.
    """

    def __init__(
        self,
        contents: Mapping[str, Any],
        source: str,
        *,
        added: Iterable[AddedToken] = (),
        named: Iterable[str] = (),
        splits_special_tokens: bool = False,
    ) -> None:
        self.source = source
        self.contents = contents
        self.splits_special_tokens = splits_special_tokens
        self._steps = decoder_steps(contents, source)
        self._model_size, self._unknown = _describe_model(contents, source)
        _check_growth(contents, source)
        self._fast = _load(contents, source)
        self._fast.no_truncation()
        self._fast.no_padding()
        self._fast.encode_special_tokens = splits_special_tokens
        self._add(added, named)
        self._special = {
            token_id for token_id, token in self._fast.get_added_tokens_decoder().items() if token.special
        }
        self.size: int = max([self._model_size, *(at + 1 for at in self._fast.get_added_tokens_decoder())])

    @property
    def files(self) -> Mapping[str, bytes]:
        return {"tokenizer.json": json.dumps(self.contents, ensure_ascii=False).encode()}

    @property
    def model(self) -> bytes:
        raise TokenizerError(f"{self.source}: has no sentencepiece model beside it; expected tokenizer.model")

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._fast.encode(text, add_special_tokens=False).ids
        return ids

    def encode_with_names(self, text: str) -> list[int]:
        return self.encode(text)

    def find(self, piece: str) -> int | None:
        token_id: int | None = self._fast.token_to_id(piece) if is_text(piece) else None
        return token_id

    def piece(self, token_id: int) -> str:
        return self._fast.id_to_token(token_id) or ""

    def score(self, token_id: int) -> float:
        raise TokenizerError(f"{self.source}: has no sentencepiece model beside it; expected tokenizer.model")

    def is_control(self, token_id: int) -> bool:
        return token_id in self._special or self._fast.id_to_token(token_id) is None

    def is_unknown(self, token_id: int) -> bool:
        return self._unknown is not None and token_id == self.find(self._unknown)

    def byte_value(self, token_id: int) -> int | None:
        byte = _BYTE.fullmatch(self.piece(token_id)) if self._steps.byte_fallback else None
        return int(byte[1], 16) if byte else None

    def text_at_start(self, ids: Sequence[int]) -> str:
        return self._without_prefix("".join(map(self.text_inside, ids)))

    def text_inside(self, token_id: int) -> str:
        return "" if self.is_control(token_id) else self.shown_name(token_id)

    def shown_name(self, token_id: int) -> str:
        text: str = self._decoder.decode([self.piece(token_id)])
        return text

    def name_at_start(self, token_id: int) -> str:
        return self._without_prefix(self.shown_name(token_id))

    def own_end(self) -> int | None:
        return None

    def own_bos(self) -> int | None:
        return None

    def _without_prefix(self, text: str) -> str:
        spaces = len(text) - len(text.lstrip(" "))
        return text[min(spaces, self._steps.stripped) :]

    @functools.cached_property
    def _decoder(self) -> Any:
        """Decodes one token that is not the first."""
        model = {"type": "WordLevel", "vocab": {"": 0}, "unk_token": ""}
        decoder = {"type": "Sequence", "decoders": [*self._steps.replacements, {"type": "Fuse"}]}
        contents = {"version": "1.0", "added_tokens": [], "model": model, "decoder": decoder}
        return _load(contents, self.source).decoder

    def _add(self, added: Iterable[AddedToken], named: Iterable[str]) -> None:
        import tokenizers

        known = {token.content for token in self._fast.get_added_tokens_decoder().values()}
        for token in sorted(added, key=lambda token: token.token_id):
            if token.content not in known:
                flags = asdict(token)
                del flags["token_id"]
                self._fast.add_tokens([tokenizers.AddedToken(**flags)])
                known.add(token.content)
            if (found := self._fast.token_to_id(token.content)) != token.token_id:
                raise TokenizerError(
                    f"{self.source}: the added token {token.content!r:.80} has the id {token.token_id} in "
                    f"the files beside it; expected {found}"
                )
        for name in named:
            if name not in known and self.find(name) is not None:
                self._fast.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False)])


def _load(contents: Mapping[str, Any], source: str) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise TokenizerError(
            f"{source}: reading it needs the package tokenizers, which is not installed: "
            "pip install 'adept-fast[tokenizers]'"
        ) from error
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(contents, ensure_ascii=False))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of its Rust code is not an Exception
        raise TokenizerError(f"{source}: the tokenizers library cannot read it ({error!s:.300})") from error


def _describe_model(contents: Mapping[str, Any], source: str) -> tuple[int, str | None]:
    """One more than the largest id of the model, and the name of the unknown token."""
    model = contents.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(vocab, (list, dict)) or not vocab:
        raise TokenizerError(f"{source}: model.vocab is {vocab!r:.80}; expected pieces")
    if isinstance(vocab, list):
        unknown = model.get("unk_id")
        entry = vocab[unknown] if type(unknown) is int and 0 <= unknown < len(vocab) else None
        name = entry[0] if isinstance(entry, list) and entry else None
        return len(vocab), name if isinstance(name, str) else None
    for piece, token_id in vocab.items():
        if type(token_id) is not int or not 0 <= token_id <= _LARGEST_ID:
            raise TokenizerError(f"{source}: the piece {piece!r:.80} has the id {token_id!r:.80}")
    unknown = model.get("unk_token")
    return max(vocab.values()) + 1, unknown if isinstance(unknown, str) else None


def _check_growth(contents: Mapping[str, Any], source: str) -> None:
    """Raises TokenizerError if a few characters could become a text that fills the memory."""
    growth = 1.0
    for step in normalizer_steps(contents.get("normalizer")):
        pattern, content = step.get("pattern"), step.get("content", step.get("prepend"))
        literal = pattern.get("String") if isinstance(pattern, dict) else None
        length = len(literal) if isinstance(literal, str) else 1
        growth *= max(1.0, len(content) / max(1, length)) if isinstance(content, str) else 1.0
        if growth > _LARGEST_GROWTH:
            raise TokenizerError(
                f"{source}: its normalizer may make more than {_LARGEST_GROWTH} characters of one"
            )


def normalizer_steps(normalizer: object) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer, those of sequences inside it too."""
    if isinstance(normalizer, dict):
        yield normalizer
        steps = normalizer.get("normalizers")
        for step in steps if isinstance(steps, list) else ():
            yield from normalizer_steps(step)

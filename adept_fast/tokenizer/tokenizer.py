"""Text to token ids and back, and a detokenizer for text that arrives one token at a time."""

from __future__ import annotations

import codecs
import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, overload

from adept_fast.arguments import ParameterError, flag, integer, optional_flag, token_ids
from adept_fast.chat.format import ChatFormat, HumanAdeptFormat, Messages
from adept_fast.system.file_limits import max_bytes
from adept_fast.system.regular_file import FileError, read_regular
from adept_fast.system.short_text import short_repr
from adept_fast.tokenizer.sentencepiece_vocabulary import SentencePieceVocabulary
from adept_fast.tokenizer.vocabulary import TokenizerError, Vocabulary, pieces_of, require_text

__all__ = ["END_OF_TEXT", "StreamingDetokenizer", "Tokenizer", "TokenizerError"]

END_OF_TEXT = "|ENDOFTEXT|"
_TAIL = 8  # tokens; the bytes of an incomplete character are at most 3


class Tokenizer:
    """A vocabulary with Persimmon's conventions.

    ``eos_ids`` end a text: ``|ENDOFTEXT|`` if the vocabulary has it, else sentencepiece's own end token, and
    the end tokens of the checkpoint. ``|ENDOFTEXT|`` is BOS too, unless the checkpoint names another token.

    Args:
        model: the bytes of a ``tokenizer.model``, or a vocabulary read from elsewhere.
        add_bos: whether ``encode`` puts BOS first by default.
        bos_token: the piece of BOS.
        source: the name of the model in errors.
        special_tokens: the checkpoint's special tokens, all of them pieces, such as ``eos_token`` →
            ``<|im_end|>``, which ends texts too.
        end_ids: further tokens that end a text.
        chat_format: how a conversation becomes a prompt.

    Raises TokenizerError if the bytes are not a sentencepiece model, or if it lacks ``bos_token``.
    """

    def __init__(
        self,
        model: bytes | Vocabulary,
        *,
        add_bos: bool = False,
        bos_token: str | None = None,
        source: str | Path = "tokenizer.model",
        special_tokens: Mapping[str, str] | None = None,
        end_ids: Iterable[int] = (),
        chat_format: ChatFormat | None = None,
    ) -> None:
        if not (bos_token is None or isinstance(bos_token, str)):
            raise TokenizerError(f"bos_token is {short_repr(bos_token)}; expected a piece or None")
        # isinstance with the protocol would read ``model``, which may raise.
        if not isinstance(model, bytes) and not hasattr(type(model), "encode_with_names"):
            raise TokenizerError(
                f"model is a {type(model).__name__}; expected the bytes of a tokenizer.model, or a vocabulary"
            )
        self.source = str(source)
        with _as_tokenizer_errors():
            self.add_bos = flag("add_bos", add_bos)
        self.vocabulary: Vocabulary = (
            SentencePieceVocabulary(model, self.source) if isinstance(model, bytes) else model
        )
        self.special_tokens = dict(special_tokens or {})
        self.chat_format: ChatFormat = chat_format or HumanAdeptFormat()
        self.eos_ids = self._choose_ends(end_ids)
        self.bos_id = self._choose_bos(bos_token)

    @classmethod
    def from_file(cls, path: str | Path, *, add_bos: bool = False, bos_token: str | None = None) -> Tokenizer:
        """Read a ``tokenizer.model`` (or Adept's ``adept_vocab.model``)."""
        if not isinstance(path, (str, os.PathLike)):
            raise TokenizerError(f"path is {short_repr(path)}; expected a str or a Path")
        try:
            model = read_regular(path, max_bytes("tokenizer.model"))
        except FileError as error:
            raise TokenizerError(str(error)) from error
        return cls(model, add_bos=add_bos, bos_token=bos_token, source=path)

    @property
    def model(self) -> bytes:
        """The bytes of the ``tokenizer.model``. Raises TokenizerError if there is none."""
        return self.vocabulary.model

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self.vocabulary.size

    @property
    def eos_id(self) -> int | None:
        """The first of the tokens that end a text."""
        return self.eos_ids[0] if self.eos_ids else None

    def encode(self, text: str, *, add_bos: bool | None = None) -> list[int]:
        """Token ids of ``text``, BOS first if ``add_bos`` (default: as the checkpoint says).

        Raises TokenizerError for text with lone surrogates, or if there is no BOS to put first.
        """
        with _as_tokenizer_errors():
            add_bos = optional_flag("add_bos", add_bos)
        if not isinstance(text, str):
            raise TokenizerError(f"text is {short_repr(text)}; expected a str")
        require_text(text)
        ids = self.vocabulary.encode(text)
        if not (self.add_bos if add_bos is None else add_bos):
            return ids
        if self.bos_id is None:
            raise TokenizerError(f"{self.source} has no BOS piece to put before the text")
        return [self.bos_id, *ids]

    def encode_rendered(self, text: str, *, add_bos: bool | None = None) -> list[int]:
        """Token ids of a prompt that a chat format rendered.

        If the format writes special tokens, their names are tokens here, and with ``add_bos`` None the format
        decides about BOS. Else this is ``encode``.
        """
        if not self.chat_format.writes_special_tokens:
            return self.encode(text, add_bos=add_bos)
        require_text(text)
        ids = self.vocabulary.encode_with_names(text)
        begins = bool(ids) and ids[0] == self.bos_id
        if add_bos is None or add_bos == begins:
            return ids
        return self.encode("", add_bos=True) + ids if add_bos else ids[1:]

    @overload
    def apply_chat_template(
        self,
        messages: Messages,
        *,
        add_generation_prompt: bool = False,
        tokenize: Literal[True] = True,
        add_bos: bool | None = None,
    ) -> list[int]: ...

    @overload
    def apply_chat_template(
        self,
        messages: Messages,
        *,
        add_generation_prompt: bool = False,
        tokenize: Literal[False],
        add_bos: bool | None = None,
    ) -> str: ...

    def apply_chat_template(
        self,
        messages: Messages,
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        add_bos: bool | None = None,
    ) -> list[int] | str:
        """The prompt of a conversation in the checkpoint's chat format, as token ids or as text.

        In the ``human:``/``adept:`` format both begin with BOS if the checkpoint puts it before text; in text
        it is a name, as in transformers. A template writes BOS itself.

        Args:
            messages: each with a ``role`` (in the ``human:``/``adept:`` format ``user`` or ``assistant``) and
                a ``content``.
            add_generation_prompt: whether the prompt ends where the model's answer begins.
            add_bos: whether the ids begin with BOS; None: as the checkpoint says.

        Raises ChatError for a conversation that the format cannot express.
        """
        with _as_tokenizer_errors():
            tokenize = flag("tokenize", tokenize)
            add_bos = optional_flag("add_bos", add_bos)
        text = self.chat_format.text(
            messages, add_generation_prompt=add_generation_prompt, special_tokens=self.special_tokens
        )
        if tokenize:
            return self.encode_rendered(text, add_bos=add_bos)
        named = not self.chat_format.writes_special_tokens and (self.add_bos if add_bos is None else add_bos)
        return self.piece(self.bos_id) + text if named and self.bos_id is not None else text

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool | None = None) -> str:
        """The text of ``ids``; each byte that is not UTF-8 becomes U+FFFD.

        ``skip_special_tokens`` concerns BOS, end tokens, unknown pieces and special added tokens: True omits
        them, False shows all of them, by name if they have no text, and None shows those that have text, as
        sentencepiece does.

        Raises TokenizerError unless ``ids`` is a list of ids of the vocabulary.
        """
        with _as_tokenizer_errors():
            ids = token_ids("ids", ids)
            skip_special_tokens = optional_flag("skip_special_tokens", skip_special_tokens)
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size:
                raise TokenizerError(
                    f"token id {token_id} is outside the vocabulary (0 to {self.vocab_size - 1})"
                )
        ends = (self.bos_id, *self.eos_ids)
        if skip_special_tokens:
            ids = [at for at in ids if not (at in ends or self.is_unknown(at) or self.is_control(at))]
        named = {at for at in ids if self.is_control(at)} if skip_special_tokens is False else ()
        detokenizer = StreamingDetokenizer(self, shown_by_name=named)
        return detokenizer.extend(ids) + detokenizer.finish()

    def piece(self, token_id: int) -> str:
        """The vocabulary entry of an id, as in the model (``▁the``, ``<0x0A>``).

        Like the methods below, raises TokenizerError for an id that is not in the vocabulary.
        """
        return self.vocabulary.piece(self._checked(token_id))

    def pieces(self) -> list[str]:
        return list(pieces_of(self.vocabulary))

    def scores(self) -> list[float]:
        return [self.vocabulary.score(token_id) for token_id in range(self.vocab_size)]

    def is_control(self, token_id: int) -> bool:
        """Whether it has no text except its name."""
        return self.vocabulary.is_control(self._checked(token_id))

    def is_unknown(self, token_id: int) -> bool:
        return self.vocabulary.is_unknown(self._checked(token_id))

    def byte_value(self, token_id: int) -> int | None:
        """The byte that a byte-fallback piece stands for, else None."""
        return self.vocabulary.byte_value(self._checked(token_id))

    def _checked(self, token_id: int) -> int:
        with _as_tokenizer_errors():
            return integer("token id", token_id, 0, self.vocab_size - 1)

    def _choose_ends(self, end_ids: Iterable[int]) -> tuple[int, ...]:
        end_of_text = self.vocabulary.find(END_OF_TEXT)
        named = self.vocabulary.find(self.special_tokens.get("eos_token", ""))
        own = self.vocabulary.own_end() if end_of_text is None else None
        known = [at for at in (end_of_text, named, *end_ids, own) if at is not None and at < self.vocab_size]
        return tuple(dict.fromkeys(known))

    def _choose_bos(self, bos_token: str | None) -> int | None:
        if bos_token is not None:
            named = self.vocabulary.find(bos_token)
            if named is None:
                raise TokenizerError(
                    f"{self.source} has no piece {short_repr(bos_token)}, which the checkpoint names as BOS"
                )
            return named
        choices = (self.vocabulary.find(END_OF_TEXT), self.vocabulary.own_bos(), self.eos_id)
        return next((token_id for token_id in choices if token_id is not None), None)


class StreamingDetokenizer:
    """Turns token ids into text one at a time.

    The joined pieces equal ``tokenizer.decode`` of all ids. No piece ends inside a UTF-8 character: bytes of
    an incomplete character wait for the next token or for ``finish``. Control pieces have no text, except
    those of ``shown_by_name``.
    """

    def __init__(self, tokenizer: Tokenizer, *, shown_by_name: Container[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._shown_by_name = shown_by_name
        self._bytes = codecs.getincrementaldecoder("utf-8")("adept_fast_replace_each")
        # Until there is text, the space before every text may still be removed.
        self._invisible: list[int] | None = []

    @property
    def holds_bytes(self) -> bool:
        """Whether bytes of an incomplete character wait."""
        return bool(self._bytes.getstate()[0])

    def push(self, token_id: int) -> str:
        """The text that this token completes; may be empty."""
        byte = self._tokenizer.byte_value(token_id)
        if byte is not None:
            return self._shown(self._bytes.decode(bytes([byte])))
        return self.finish() + self._surface(token_id)

    def extend(self, ids: Iterable[int]) -> str:
        return "".join([self.push(token_id) for token_id in ids])

    def skip(self, ids: Sequence[int]) -> None:
        """Go on after ids whose text is not needed; fast, and only before everything else."""
        self.extend(ids[-_TAIL:])
        if self._invisible is not None:  # no text there: what comes may be the first
            self._bytes.reset()
            self._invisible = []
            self.extend(ids)

    def finish(self) -> str:
        """The rest: a U+FFFD for each byte of an incomplete character."""
        text = self._bytes.decode(b"", final=True)
        self._bytes.reset()
        return self._shown(text)

    def _surface(self, token_id: int) -> str:
        if token_id in self._shown_by_name:
            vocabulary = self._tokenizer.vocabulary
            at_start = self._invisible == []  # else the space is removed already
            name = vocabulary.name_at_start(token_id) if at_start else vocabulary.shown_name(token_id)
            return self._shown(name)
        if self._tokenizer.is_control(token_id):
            return ""
        if self._invisible is not None:
            self._invisible.append(token_id)
            return self._shown(self._tokenizer.vocabulary.text_at_start(self._invisible))
        return self._tokenizer.vocabulary.text_inside(token_id)

    def _shown(self, text: str) -> str:
        if text:
            self._invisible = None
        return text


@contextmanager
def _as_tokenizer_errors() -> Iterator[None]:
    try:
        yield
    except ParameterError as error:
        raise TokenizerError(str(error)) from error


def _replace_each(error: UnicodeError) -> tuple[str, int]:
    """A U+FFFD for every byte that is not UTF-8, as in sentencepiece (Python merges some)."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("adept_fast_replace_each", _replace_each)

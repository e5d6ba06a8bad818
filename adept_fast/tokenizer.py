"""Text to token ids and back: sentencepiece, and a detokenizer for text that arrives one token at a time."""

from __future__ import annotations

import codecs
import operator
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, overload

import sentencepiece

from adept_fast.arguments import ParameterError, flag, optional_flag, shown, token_ids
from adept_fast.chat import chat_text
from adept_fast.file_limits import max_bytes
from adept_fast.regular_file import FileError, read_regular
from adept_fast.stand_in import why_unreadable

END_OF_TEXT = "|ENDOFTEXT|"
_SPACE = "▁"


class TokenizerError(ValueError):
    """A tokenizer model that cannot be read, or text or ids that it cannot take."""


class Tokenizer:
    """A sentencepiece model with Persimmon's conventions.

    The end token is ``|ENDOFTEXT|`` where the vocabulary has it, else sentencepiece's own end token; put
    before a prompt, the same token is the beginning (BOS), unless the checkpoint names another.

    Args:
        model: the bytes of a ``tokenizer.model``.
        add_bos: whether ``encode`` puts BOS first when it is not told.
        bos_token: the piece that serves as BOS.
        source: what to call the model in errors.

    Raises TokenizerError when the bytes are no sentencepiece model or it lacks ``bos_token``.
    """

    def __init__(
        self,
        model: bytes,
        *,
        add_bos: bool = False,
        bos_token: str | None = None,
        source: str | Path = "tokenizer.model",
    ) -> None:
        if not isinstance(model, bytes) or not (bos_token is None or isinstance(bos_token, str)):
            raise TokenizerError(
                f"model is a {type(model).__name__} and bos_token {shown(bos_token)}; "
                f"expected the bytes of a tokenizer.model, and a piece or None"
            )
        self.model = model
        self.source = str(source)
        with _as_tokenizer_errors():
            self.add_bos = flag("add_bos", add_bos)
        self._processor = _read_processor(model, self.source)
        self.vocab_size: int = self._processor.vocab_size()
        end_of_text = self._find_piece(END_OF_TEXT)
        self.eos_id: int | None = (
            end_of_text if end_of_text is not None else self._valid(self._processor.eos_id())
        )
        self.bos_id = self._choose_bos(bos_token, end_of_text)

    @classmethod
    def from_file(cls, path: str | Path, *, add_bos: bool = False, bos_token: str | None = None) -> Tokenizer:
        """Read a ``tokenizer.model`` (or Adept's ``adept_vocab.model``)."""
        if not isinstance(path, (str, os.PathLike)):
            raise TokenizerError(f"path is {shown(path)}; expected a str or a Path")
        try:
            model = read_regular(path, max_bytes("tokenizer.model"))
        except FileError as error:
            raise TokenizerError(str(error)) from error
        return cls(model, add_bos=add_bos, bos_token=bos_token, source=path)

    def encode(self, text: str, *, add_bos: bool | None = None) -> list[int]:
        """Token ids of ``text``, BOS first if ``add_bos`` (default: as the checkpoint says).

        Raises TokenizerError for text with lone surrogates, or where BOS is asked for and there is none.
        """
        with _as_tokenizer_errors():
            add_bos = optional_flag("add_bos", add_bos)
        if not isinstance(text, str):
            raise TokenizerError(f"text is {shown(text)}; expected a str")
        try:
            ids: list[int] = self._processor.encode(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"the text holds a lone surrogate at character {error.start}, which UTF-8 cannot express"
            ) from error
        if not (self.add_bos if add_bos is None else add_bos):
            return ids
        if self.bos_id is None:
            raise TokenizerError(f"{self.source} has no BOS piece to put before the text")
        return [self.bos_id, *ids]

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool = False,
        tokenize: Literal[True] = True,
    ) -> list[int]: ...

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool = False,
        tokenize: Literal[False],
    ) -> str: ...

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
    ) -> list[int] | str:
        """The prompt of a conversation in the ``human:``/``adept:`` format, in token ids or as text.

        Both begin with BOS where the checkpoint puts it before text, the text with its name, as transformers
        has it.

        Args:
            messages: each with a ``role``, ``user`` or ``assistant``, and a ``content``.
            add_generation_prompt: whether the prompt ends where the model's answer begins.

        Raises ChatError for a conversation that the format cannot express.
        """
        with _as_tokenizer_errors():
            tokenize = flag("tokenize", tokenize)
        text = chat_text(messages, add_generation_prompt=add_generation_prompt)
        if tokenize:
            return self.encode(text)
        begins_with_bos = self.add_bos and self.bos_id is not None
        return self.piece(self.bos_id or 0) + text if begins_with_bos else text

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool | None = None) -> str:
        """The text of ``ids``; bytes that are not UTF-8 become U+FFFD each.

        ``skip_special_tokens`` concerns BOS, the end token and unknown pieces: True leaves them out, False
        shows all of them, those that are control pieces by their names, and None, sentencepiece's own way,
        shows all but control pieces.

        Raises TokenizerError for what is no list of ids of the vocabulary.
        """
        with _as_tokenizer_errors():
            ids = token_ids("ids", ids)
            skip_special_tokens = optional_flag("skip_special_tokens", skip_special_tokens)
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size:
                raise TokenizerError(
                    f"token id {token_id} is outside the vocabulary (0 to {self.vocab_size - 1})"
                )
        ends = (self.bos_id, self.eos_id)
        if skip_special_tokens:
            ids = [token_id for token_id in ids if token_id not in ends and not self.is_unknown(token_id)]
        elif skip_special_tokens is False:
            silent = {token_id for token_id in ends if token_id is not None and self.is_control(token_id)}
            pieces = StreamingDetokenizer(self, shown_by_name=silent)
            return pieces.extend(ids) + pieces.finish()
        text: str = self._processor.decode(ids)
        return text

    def piece(self, token_id: int) -> str:
        """The vocabulary entry of an id, as it stands in the model (``▁the``, ``<0x0A>``).

        Like the questions below, raises TokenizerError for what is no id of the vocabulary.
        """
        text: str = self._of_id(self._processor.id_to_piece, token_id)
        return text

    def pieces(self) -> list[str]:
        return [self.piece(token_id) for token_id in range(self.vocab_size)]

    def scores(self) -> list[float]:
        return [self._processor.get_score(token_id) for token_id in range(self.vocab_size)]

    def is_control(self, token_id: int) -> bool:
        return bool(self._of_id(self._processor.is_control, token_id))

    def is_unknown(self, token_id: int) -> bool:
        return bool(self._of_id(self._processor.is_unknown, token_id))

    def byte_value(self, token_id: int) -> int | None:
        """The byte that a byte-fallback piece stands for, else None."""
        is_byte = self._of_id(self._processor.is_byte, token_id)
        return int(self.piece(token_id)[3:5], 16) if is_byte else None

    def _of_id(self, question: Callable[[int], Any], token_id: int) -> Any:
        try:
            return question(operator.index(token_id))
        except (IndexError, OverflowError, RuntimeError, TypeError, ValueError) as error:
            raise TokenizerError(
                f"token id {shown(token_id)} is outside the vocabulary (0 to {self.vocab_size - 1})"
            ) from error

    def _find_piece(self, piece: str) -> int | None:
        # sentencepiece answers the unknown id for a piece that it lacks.
        token_id = self._processor.piece_to_id(piece)
        return token_id if self.vocab_size and self._processor.id_to_piece(token_id) == piece else None

    def _valid(self, token_id: int) -> int | None:
        return token_id if 0 <= token_id < self.vocab_size else None

    def _choose_bos(self, bos_token: str | None, end_of_text: int | None) -> int | None:
        if bos_token is not None:
            named = self._find_piece(bos_token)
            if named is None:
                raise TokenizerError(
                    f"{self.source} has no piece {shown(bos_token)}, which the checkpoint names as BOS"
                )
            return named
        if end_of_text is not None:
            return end_of_text
        bos = self._valid(self._processor.bos_id())
        return bos if bos is not None else self.eos_id


class StreamingDetokenizer:
    """Turns token ids into text as they come.

    The joined pieces equal ``tokenizer.decode`` of all ids, for any ids, and no piece ends inside a UTF-8
    character: bytes of a character that is not whole yet wait for the next token or for ``finish``.
    Control pieces have no text, but for those of ``shown_by_name``.
    """

    def __init__(self, tokenizer: Tokenizer, *, shown_by_name: Container[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._shown_by_name = shown_by_name
        self._bytes = codecs.getincrementaldecoder("utf-8")("adept_fast_replace_each")
        # Until something shows, sentencepiece may still swallow the space that it puts before every text.
        self._invisible: list[int] | None = []

    def push(self, token_id: int) -> str:
        """The text that becomes known with this token; may be empty."""
        byte = self._tokenizer.byte_value(token_id)
        if byte is not None:
            return self._shown(self._bytes.decode(bytes([byte])))
        return self.finish() + self._surface(token_id)

    def extend(self, ids: Iterable[int]) -> str:
        return "".join([self.push(token_id) for token_id in ids])

    def finish(self) -> str:
        """The rest: bytes that never became a character, U+FFFD each."""
        text = self._bytes.decode(b"", final=True)
        self._bytes.reset()
        return self._shown(text)

    def _surface(self, token_id: int) -> str:
        if token_id in self._shown_by_name:
            return self._shown(self._tokenizer.piece(token_id))
        if self._invisible is not None:
            self._invisible.append(token_id)
            return self._shown(self._tokenizer.decode(self._invisible))
        if self._tokenizer.is_control(token_id) or self._tokenizer.is_unknown(token_id):
            return self._tokenizer.decode([token_id])
        return self._tokenizer.piece(token_id).replace(_SPACE, " ")

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
    """One U+FFFD for every byte that is not UTF-8, as sentencepiece does (Python would merge some)."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("adept_fast_replace_each", _replace_each)


def _read_processor(model: bytes, source: str) -> sentencepiece.SentencePieceProcessor:
    if not model:
        raise TokenizerError(f"{source}: not a sentencepiece model (the file is empty)")
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        reason = f"not a sentencepiece model ({error})"
        raise TokenizerError(why_unreadable(source, model, reason)) from error
    return processor

"""Reads the pieces of a sentencepiece model file, with their types, and its normalisation of text.

sentencepiece's Python interface does not expose these, and its protobuf classes need a package that nothing
else here needs; the few fields of the file are read from the wire format directly.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from adept_fast.tokenizer.tokenizer import TokenizerError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10


class PieceType(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class ModelType(IntEnum):
    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


class Piece(NamedTuple):
    text: str
    score: float
    type: PieceType


@dataclass(frozen=True)
class Normalizer:
    """The normalisation of text before pieces are matched; the defaults are sentencepiece's."""

    name: str = ""
    precompiled_charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True


@dataclass(frozen=True)
class SentencePieceModel:
    pieces: tuple[Piece, ...]
    model_type: ModelType
    byte_fallback: bool
    treat_whitespace_as_suffix: bool
    unk_surface: str
    normalizer: Normalizer
    changes_decoded_text: bool  # it has a second normaliser, for decoded text


def parse_model(model: bytes, source: str = "tokenizer.model") -> SentencePieceModel:
    """Read the bytes of a sentencepiece model; TokenizerError names ``source`` and the fault."""
    try:
        fields = _Message(model)
        trainer = _Message(fields.message(2))
        return SentencePieceModel(
            pieces=tuple(_piece(payload) for payload in fields.all_raw(1)),
            model_type=ModelType(trainer.integer(3, ModelType.UNIGRAM)),
            byte_fallback=bool(trainer.integer(35, 0)),
            treat_whitespace_as_suffix=bool(trainer.integer(24, 0)),
            unk_surface=trainer.text(44, " ⁇ "),
            normalizer=_normalizer(_Message(fields.message(3))),
            changes_decoded_text=bool(_Message(fields.message(5)).raw(2)),
        )
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"{source}: not a sentencepiece model (a string is not UTF-8: {error})"
        ) from error
    except ValueError as error:
        raise TokenizerError(f"{source}: not a sentencepiece model ({error})") from error


def _piece(payload: bytes) -> Piece:
    fields = _Message(payload)
    return Piece(fields.text(1, ""), fields.float32(2), PieceType(fields.integer(3, PieceType.NORMAL)))


def _normalizer(fields: _Message) -> Normalizer:
    return Normalizer(
        name=fields.text(1, ""),
        precompiled_charsmap=fields.raw(2),
        add_dummy_prefix=bool(fields.integer(3, 1)),
        remove_extra_whitespaces=bool(fields.integer(4, 1)),
        escape_whitespaces=bool(fields.integer(5, 1)),
    )


class _Message:
    """The fields of one protobuf message, by number; ValueError if the bytes are none."""

    def __init__(self, payload: bytes) -> None:
        self._fields: dict[int, list[int | bytes]] = {}
        for number, value in _fields_of(payload):
            self._fields.setdefault(number, []).append(value)

    def all_raw(self, number: int) -> list[bytes]:
        values = self._fields.get(number, [])
        if not all(isinstance(value, bytes) for value in values):
            raise ValueError(f"field {number} is a number; expected bytes")
        return values  # type: ignore[return-value]

    def raw(self, number: int) -> bytes:
        values = self.all_raw(number)
        return values[-1] if values else b""  # protobuf: the last one counts

    def message(self, number: int) -> bytes:
        return b"".join(self.all_raw(number))  # protobuf: messages that come in parts are merged

    def text(self, number: int, default: str) -> str:
        return self.raw(number).decode("utf-8") if number in self._fields else default

    def integer(self, number: int, default: int) -> int:
        value = self._fields.get(number, [default])[-1]
        if isinstance(value, bytes):
            raise ValueError(f"field {number} is bytes; expected an integer")
        return value

    def float32(self, number: int) -> float:
        value = self._fields.get(number, [b"\0\0\0\0"])[-1]
        if not isinstance(value, bytes) or len(value) != 4:
            raise ValueError(f"field {number} is not a 32-bit number")
        number_read: float = struct.unpack("<f", value)[0]
        return number_read


def _fields_of(payload: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The number and value of each field; varints as integers, all others as their bytes."""
    position = 0
    while position < len(payload):
        tag, position = _varint(payload, position)
        number, wire_type = tag >> 3, tag & 7
        if number == 0:
            raise ValueError(f"a field numbered 0 before byte {position}")
        if wire_type == _VARINT:
            value, position = _varint(payload, position)
            yield number, value
            continue
        if wire_type == _BYTES:
            length, position = _varint(payload, position)
        elif wire_type in (_FIXED32, _FIXED64):
            length = 4 if wire_type == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire_type} before byte {position}")
        end = position + length
        if end > len(payload):
            raise ValueError(
                f"field {number} at byte {position} needs {length} bytes; {len(payload) - position} left"
            )
        yield number, payload[position:end]
        position = end


def _varint(payload: bytes, position: int) -> tuple[int, int]:
    """The integer at a position, and the position behind it."""
    value = 0
    for index, byte in enumerate(payload[position : position + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise ValueError(f"the number at byte {position} does not end")

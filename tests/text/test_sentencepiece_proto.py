"""The reader of sentencepiece's files: right on real ones, and one kind of error on everything else."""

from __future__ import annotations

import struct

import pytest
import sentencepiece
from checkpoints import demo_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers_for_tests import field, number, train, varint

from adept_fast.checkpoint.sentencepiece_proto import ModelType, Piece, PieceType, parse_model
from adept_fast.tokenizer.tokenizer import TokenizerError


def piece(name: str, score: float, kind: int | None = None) -> bytes:
    body = field(1, name) + varint(2 << 3 | 5) + struct.pack("<f", score)
    return field(1, body + (number(3, kind) if kind is not None else b""))


TINY = (
    piece("<unk>", 0.0, 2)
    + piece("|ENDOFTEXT|", 0.0, 4)
    + piece("▁a", -1.5)
    + field(2, number(3, 1) + number(35, 1) + field(44, "?"))
    + field(3, field(1, "identity") + number(3, 0) + number(4, 0) + number(5, 1))
)


@pytest.mark.parametrize(
    "model",
    [
        demo_tokenizer(),
        train(user_defined_symbols=("|ENDOFTEXT|",), control_symbols=("<extra>",)),
        train(byte_fallback=False, normalization_rule_name="nmt_nfkc"),
    ],
    ids=["demo", "all types", "no bytes"],
)
def test_pieces_are_those_of_sentencepiece(model: bytes) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    parsed = parse_model(model)
    assert len(parsed.pieces) == reference.vocab_size()
    for at, found in enumerate(parsed.pieces):
        assert (found.text, found.score) == (reference.id_to_piece(at), reference.get_score(at))
        assert (found.type is PieceType.CONTROL) == reference.is_control(at)
        assert (found.type is PieceType.UNKNOWN) == reference.is_unknown(at)
        assert (found.type is PieceType.BYTE) == reference.is_byte(at)
        assert (found.type is PieceType.UNUSED) == reference.is_unused(at)
    assert parsed.byte_fallback == any(found.type is PieceType.BYTE for found in parsed.pieces)


def test_user_defined_pieces_are_told_from_control_ones() -> None:
    parsed = parse_model(train(user_defined_symbols=("|ENDOFTEXT|",), control_symbols=("<extra>",)))
    types = {found.text: found.type for found in parsed.pieces}
    assert types["|ENDOFTEXT|"] is PieceType.USER_DEFINED
    assert types["<extra>"] is types["</s>"] is PieceType.CONTROL
    assert types["▁the"] is PieceType.NORMAL


@pytest.mark.parametrize("dummy_prefix", [True, False])
@pytest.mark.parametrize("remove_extra", [True, False])
def test_normalizer_settings(dummy_prefix: bool, remove_extra: bool) -> None:
    model = train(
        normalization_rule_name="nmt_nfkc",
        add_dummy_prefix=dummy_prefix,
        remove_extra_whitespaces=remove_extra,
    )
    normalizer = parse_model(model).normalizer
    assert normalizer.name == "nmt_nfkc"
    assert (normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces) == (dummy_prefix, remove_extra)
    assert len(normalizer.precompiled_charsmap) > 100_000
    assert normalizer.escape_whitespaces


@pytest.mark.parametrize("kind", list(ModelType))
def test_model_types(kind: ModelType) -> None:
    assert parse_model(train(model_type=kind.name.lower())).model_type is kind


def test_tiny_model_field_by_field() -> None:
    parsed = parse_model(TINY)
    assert parsed.pieces == (
        Piece("<unk>", 0.0, PieceType.UNKNOWN),
        Piece("|ENDOFTEXT|", 0.0, PieceType.USER_DEFINED),
        Piece("▁a", -1.5, PieceType.NORMAL),
    )
    assert (parsed.model_type, parsed.byte_fallback, parsed.unk_surface) == (ModelType.UNIGRAM, True, "?")
    assert not parsed.normalizer.add_dummy_prefix
    assert not parsed.normalizer.remove_extra_whitespaces
    assert not parsed.changes_decoded_text


def test_absent_fields_have_sentencepieces_defaults() -> None:
    parsed = parse_model(piece("<unk>", 0.0, 2))
    assert (parsed.model_type, parsed.unk_surface) == (ModelType.UNIGRAM, " ⁇ ")
    assert not parsed.byte_fallback
    assert not parsed.treat_whitespace_as_suffix
    assert parsed.normalizer.add_dummy_prefix
    assert parsed.normalizer.remove_extra_whitespaces


def test_later_values_win_and_messages_merge() -> None:
    parsed = parse_model(TINY + field(2, number(3, 2) + field(44, "!")) + field(3, number(3, 1)))
    assert parsed.unk_surface == "!"
    assert parsed.model_type is ModelType.BPE
    assert parsed.byte_fallback  # from the first part
    assert parsed.normalizer.add_dummy_prefix
    assert not parsed.normalizer.remove_extra_whitespaces


def test_unknown_fields_are_skipped() -> None:
    unknown = number(300, 2**63) + field(200, b"\xff\xfe") + varint(17 << 3 | 1) + bytes(8)
    assert parse_model(unknown + TINY + unknown) == parse_model(TINY)


def test_a_denormalizer_is_noticed() -> None:
    assert parse_model(TINY + field(5, field(2, b"rules"))).changes_decoded_text


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (field(1, number(1, 5)), "field 1 is a number"),
        (number(1, 5), "field 1 is a number"),
        (field(1, field(2, b"abc")), "field 2 is not a 32-bit number"),
        (field(1, number(2, 3)), "field 2 is not a 32-bit number"),
        (field(1, field(3, "x")), "field 3 is bytes"),
        (field(1, field(1, b"\xff")), "not UTF-8"),
        (piece("a", 0.0, 9), "9 is not a valid PieceType"),
        (field(2, number(3, 7)), "7 is not a valid ModelType"),
        (number(0, 1), "numbered 0"),
        (varint(1 << 3 | 3), "wire type 3"),
        (varint(1 << 3 | 4), "wire type 4"),
        (varint(1 << 3 | 7), "wire type 7"),
        (b"\xff" * 11, "does not end"),
        (b"\x80", "does not end"),
        (varint(1 << 3 | 2) + varint(2**60), "needs 1152921504606846976 bytes; 0 left"),
        (varint(1 << 3 | 5) + b"abc", "needs 4 bytes; 3 left"),
    ],
)
def test_each_malformation_has_its_sentence(model: bytes, found: str) -> None:
    with pytest.raises(TokenizerError, match="^a/tokenizer.model: not a sentencepiece model ") as caught:
        parse_model(model, "a/tokenizer.model")
    assert found in str(caught.value)
    assert "\n" not in str(caught.value)


def outcome(model: bytes) -> str:
    try:
        parse_model(model)
    except TokenizerError:
        return "refused"
    return "read"


def test_every_truncation_is_refused_or_a_whole_number_of_fields() -> None:
    whole = {0}
    for part in (TINY[: len(TINY) - at] for at in range(len(TINY))):
        if outcome(part) == "read":
            whole.add(len(part))
    # Three pieces, the trainer's and the normaliser's settings: six places where the file may end.
    assert len(whole) == 6
    real = train()
    for end in range(0, len(real), 37):
        outcome(real[:end])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_raises_nothing_else(model: bytes) -> None:
    outcome(model)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(TINY) - 1), st.binary(min_size=1, max_size=4))
def test_damage_raises_nothing_else(at: int, bytes_written: bytes) -> None:
    outcome(TINY[:at] + bytes_written + TINY[at + len(bytes_written) :])

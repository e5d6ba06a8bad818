"""The streaming detokenizer and the tokenizer against sentencepiece."""

from __future__ import annotations

import functools
import io
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from adept_fast.checkpoint import demo_path
from adept_fast.tokenizer.tokenizer import StreamingDetokenizer, Tokenizer, TokenizerError

CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "human: What is it?\n\nadept: It is a  small   thing.",
    "Grüße aus Köln, 你好, naïve café",
    "one two three four five six seven eight nine ten",
] * 20


def train(**options: object) -> Tokenizer:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=400,
        model_type="unigram",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return Tokenizer(model.getvalue())


TOKENIZERS = {
    "demo": lambda: Tokenizer.from_file(demo_path() / "tokenizer.model"),
    "defaults": train,
    "no dummy prefix": lambda: train(add_dummy_prefix=False),
    "spaces kept": lambda: train(remove_extra_whitespaces=False),
    "identity, user-defined end": lambda: train(
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["|ENDOFTEXT|"],
    ),
}


@functools.cache
def made(name: str) -> Tokenizer:
    return TOKENIZERS[name]()


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return made(request.param)


@functools.cache
def processor(model: bytes) -> Any:
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def by_sentencepiece(tokenizer: Tokenizer, ids: list[int]) -> str:
    text: str = processor(tokenizer.model).decode(ids)
    return text


@functools.cache
def ids_of_bytes(tokenizer: Tokenizer) -> dict[int | None, int]:
    return {tokenizer.byte_value(token_id): token_id for token_id in range(tokenizer.vocab_size)}


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = StreamingDetokenizer(tokenizer)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.finish()]


# Ids drawn evenly would hardly ever make two bytes of one character.
ids_of_interest = st.lists(
    st.one_of(st.integers(0, 399), st.integers(0, 3), st.integers(3, 258)), max_size=24
)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(ids=ids_of_interest)
def test_joined_pieces_are_the_text_of_any_ids(tokenizer: Tokenizer, ids: list[int]) -> None:
    ids = [token_id % tokenizer.vocab_size for token_id in ids]
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids) == by_sentencepiece(tokenizer, ids)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=16))
def test_joined_pieces_are_the_text_of_any_bytes(tokenizer: Tokenizer, data: bytes) -> None:
    ids = [ids_of_bytes(tokenizer)[byte] for byte in data]
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids) == by_sentencepiece(tokenizer, ids)


@settings(max_examples=300, deadline=None)
@given(
    ids=st.lists(st.one_of(st.integers(0, 399), st.integers(0, 3), st.integers(3, 258)), max_size=40),
    split=st.floats(0, 1),
)
def test_text_goes_on_after_ids_that_were_skipped(tokenizer: Tokenizer, ids: list[int], split: float) -> None:
    ids = [token_id % tokenizer.vocab_size for token_id in ids]
    at = round(len(ids) * split)
    read, skipped = StreamingDetokenizer(tokenizer), StreamingDetokenizer(tokenizer)
    read.extend(ids[:at])
    skipped.skip(ids[:at])
    for token_id in ids[at:]:
        assert skipped.push(token_id) == read.push(token_id)
        assert skipped.holds_bytes == read.holds_bytes
    assert skipped.finish() == read.finish()


@settings(max_examples=300, deadline=None)
@given(
    data=st.lists(st.sampled_from(["😀".encode(), "😀".encode()[:3], "€".encode()[:2], b"\x80", b"a"])).map(
        b"".join
    ),
    split=st.integers(0, 40),
)
def test_bytes_go_on_after_bytes_that_were_skipped(data: bytes, split: int) -> None:
    tokenizer = made("identity, user-defined end")
    ids = [ids_of_bytes(tokenizer)[byte] for byte in data]
    read, skipped = StreamingDetokenizer(tokenizer), StreamingDetokenizer(tokenizer)
    read.extend(ids[:split])
    skipped.skip(ids[:split])
    assert [skipped.push(i) for i in ids[split:]] == [read.push(i) for i in ids[split:]]
    assert skipped.finish() == read.finish()


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=40))
def test_no_piece_ends_inside_a_character(text: str) -> None:
    tokenizer = made("identity, user-defined end")
    pieces = streamed(tokenizer, tokenizer.encode(text))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in text


def test_characters_wait_for_their_last_byte() -> None:
    tokenizer = made("demo")
    of_byte = {tokenizer.byte_value(token_id): token_id for token_id in range(tokenizer.vocab_size)}
    assert streamed(tokenizer, [of_byte[byte] for byte in "é🙂".encode()]) == ["", "é", "", "", "", "🙂", ""]
    assert streamed(tokenizer, [of_byte[0xE2], of_byte[0x82]]) == ["", "", "\ufffd\ufffd"]


def test_end_token_is_the_end_of_text_where_the_vocabulary_has_it() -> None:
    named = made("identity, user-defined end")
    assert named.piece(named.eos_id) == "|ENDOFTEXT|"
    assert named.bos_id == named.eos_id
    plain = made("defaults")
    assert plain.piece(plain.eos_id) == "</s>"
    assert plain.piece(plain.bos_id) == "<s>"


def test_bos_is_put_first_when_asked_for() -> None:
    model = (demo_path() / "tokenizer.model").read_bytes()
    never, always = Tokenizer(model), Tokenizer(model, add_bos=True)
    ids = never.encode("Hello")
    assert always.encode("Hello") == never.encode("Hello", add_bos=True) == [1, *ids]
    assert always.encode("Hello", add_bos=False) == ids


def test_a_named_bos_must_exist() -> None:
    model = (demo_path() / "tokenizer.model").read_bytes()
    with pytest.raises(TokenizerError, match="no piece '<begin>'"):
        Tokenizer(model, bos_token="<begin>")


@pytest.mark.parametrize("text", ["a\ud800b", "\udfff"])
def test_lone_surrogates_are_refused(text: str) -> None:
    with pytest.raises(TokenizerError, match=f"surrogate at character {text.index(text.strip('ab'))}"):
        made("demo").encode(text)


@pytest.mark.parametrize("token_id", [-1, 4096, 2**40])
def test_ids_outside_the_vocabulary_are_refused(token_id: int) -> None:
    with pytest.raises(TokenizerError, match=f"token id {token_id} is outside"):
        made("demo").decode([5, token_id])


@pytest.mark.parametrize("model", [b"", b"not a model", bytes(100)])
def test_bytes_that_are_no_model_are_refused(model: bytes) -> None:
    with pytest.raises(TokenizerError, match="given.model: not a sentencepiece model"):
        Tokenizer(model, source="given.model")


def test_a_piece_that_is_no_text() -> None:
    model = (demo_path() / "tokenizer.model").read_bytes()
    damaged = model.replace("▁the".encode(), "▁t".encode() + b"\xffe", 1)
    assert damaged != model
    with pytest.raises(TokenizerError, match="given.model: a piece is not UTF-8 text"):
        Tokenizer(damaged, source="given.model")

"""tokenizer.json against sentencepiece: the same ids and the same text, or a assert_refused that says why."""

from __future__ import annotations

import json
import random
import struct
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_huggingface
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers_for_tests import SPELLING, field, number, train, varint
from transformers import AutoTokenizer

from adept_fast.chat.format import Turn, chat_prompt
from adept_fast.checkpoint import open_checkpoint
from adept_fast.checkpoint.save import save_huggingface
from adept_fast.checkpoint.sentencepiece_proto import parse_model
from adept_fast.checkpoint.tokenizer_check import check_tokenizer_json
from adept_fast.checkpoint.tokenizer_json import tokenizer_json
from adept_fast.tokenizer.tokenizer import Tokenizer, TokenizerError

EOT = "|ENDOFTEXT|"
USER = {"user_defined_symbols": (EOT,)}
CONTROL = {"control_symbols": (EOT,)}

# Text is left as it is: sentencepiece and the library must agree on every string.
IDENTITY: dict[str, dict[str, Any]] = {
    "plain": {},
    "user-defined": USER,
    "user-defined, spelt": USER | {"required_chars": SPELLING},
    "control": CONTROL,
    "control, spelt": CONTROL | {"required_chars": SPELLING},
    "two overlapping": {"user_defined_symbols": (EOT, "|END", "a b", "the")},
    "no prefix": USER | {"add_dummy_prefix": False},
    "no bytes": USER | {"byte_fallback": False},
    "no bytes, control": CONTROL | {"byte_fallback": False, "required_chars": SPELLING},
    "spaces in pieces": {"split_by_whitespace": False, "allow_whitespace_only_pieces": True},
}
# sentencepiece decodes a leading ▁ of the text itself otherwise, so these are compared without it.
WHITESPACE_REMOVED: dict[str, dict[str, Any]] = {
    "removed": USER | {"remove_extra_whitespaces": True},
    "removed, no prefix": USER | {"remove_extra_whitespaces": True, "add_dummy_prefix": False},
}
# The library normalises combining sequences otherwise, so these are compared without them.
TABLES: dict[str, dict[str, Any]] = {
    f"{rule}, {'removed' if removed else 'kept'}": {
        "normalization_rule_name": rule,
        "remove_extra_whitespaces": removed,
        **({} if rule.endswith("_cf") else USER),
    }
    for rule in ("nmt_nfkc", "nfkc", "nmt_nfkc_cf")
    for removed in (True, False)
}
ALL = IDENTITY | WHITESPACE_REMOVED | TABLES

FRAGMENTS = (
    *(
        EOT,
        EOT,
        " ",
        " ",
        "  ",
        "   ",
        "\n",
        "\t",
        "\r\n",
        "\0",
        "\x01",
        "\x7f",
        "\u00a0",
        "\u3000",
        "\u200b",
    ),
    *(
        "a",
        "b",
        "x",
        "hello",
        "the",
        " the",
        "quick brown",
        "Zürich",
        "é",
        "各",
        "你好",
        "Ａ",
        "ﬁ",
        "①",
        "😀",
    ),
    *(
        "<s>",
        "</s>",
        "<unk>",
        "<0x0A>",
        "<0xFF>",
        "<0x",
        "0A>",
        "<",
        ">",
        "|END",
        "OFTEXT|",
        "|",
        "\U0010ffff",
    ),
)
COMBINING = ("e\u0301", "Ａ\u0301", "\u1100\u1161\u11a8", "ｶﾞ", "👨‍👩‍👧", "ไทย", "नमस्ते", "\u0301")
LITERAL_SPACE = ("▁", "▁▁", "▁a", "a▁")


def strings(*fragments: str, count: int) -> list[str]:
    chosen = random.Random(7)
    return [*fragments, *("".join(chosen.choices(fragments, k=chosen.randint(0, 8))) for _ in range(count))]


def strings_for(kind: str) -> list[str]:
    if kind in IDENTITY:
        return strings(*FRAGMENTS, *COMBINING, *LITERAL_SPACE, count=600)
    return strings(*FRAGMENTS, *(COMBINING if kind in WHITESPACE_REMOVED else ()), count=600)


def pair(kind: str, **options: Any) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    tokenizer = Tokenizer(train(**ALL[kind]), **options)
    return tokenizer, tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(tokenizer)))


def assert_equal(tokenizer: Tokenizer, fast: tokenizers.Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_bos=False)
    assert fast.encode(text, add_special_tokens=False).ids == ids, text
    assert fast.decode(ids, skip_special_tokens=False) == tokenizer.decode(ids), text


@pytest.mark.parametrize("kind", ALL)
def test_ids_and_text_are_sentencepieces(kind: str) -> None:
    tokenizer, fast = pair(kind)
    for text in strings_for(kind):
        assert_equal(tokenizer, fast, text)


@pytest.mark.slow
@pytest.mark.parametrize("kind", IDENTITY)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" ab▁<|"), max_size=30))
def test_any_text(kind: str, text: str) -> None:
    assert_equal(*pair_of(kind), text)


PAIRS: dict[str, tuple[Tokenizer, tokenizers.Tokenizer]] = {}


def pair_of(kind: str) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    if kind not in PAIRS:
        PAIRS[kind] = pair(kind)
    return PAIRS[kind]


def test_the_shipped_tokenizer() -> None:
    tokenizer = Tokenizer(demo_tokenizer())
    fast = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(tokenizer)))
    for text in strings(*FRAGMENTS, *COMBINING, *LITERAL_SPACE, count=1000):
        assert_equal(tokenizer, fast, text)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TABLES)
def test_every_code_point_is_normalised_alike(kind: str) -> None:
    tokenizer, fast = pair(kind)
    for start in range(0, 0x110000, 97):  # 97 is prime: each residue modulo a block size is met
        character = chr(start)
        if unicodedata.category(character) != "Cs" and not unicodedata.category(character).startswith("M"):
            assert_equal(tokenizer, fast, f"x{character}y")


class TestSpecialPieces:
    """Where in a text a special piece is, and what surrounds it, decides where ▁ goes."""

    @pytest.mark.parametrize(
        "text", [EOT, f"{EOT}a", f"a{EOT}", f"a{EOT}b", f"{EOT} a", f"a {EOT} b", f" {EOT} "]
    )
    def test_user_defined_pieces_are_found_and_only_the_text_has_a_prefix(self, text: str) -> None:
        tokenizer, fast = pair("user-defined")
        found = fast.encode(text, add_special_tokens=False).tokens
        assert "".join(found).count(EOT) == text.count(EOT) == found.count(EOT)
        assert "".join(found) == "▁" + text.replace(" ", "▁")
        assert_equal(tokenizer, fast, text)

    @pytest.mark.parametrize("kind", ["control", "control, spelt", "no bytes, control", "plain"])
    @pytest.mark.parametrize("name", [EOT, "<s>", "</s>", "<unk>", "<0x41>"])
    def test_reserved_pieces_are_never_found_in_text(self, kind: str, name: str) -> None:
        tokenizer, fast = pair(kind)
        found = fast.encode(f"a{name}b {name}", add_special_tokens=False).tokens
        assert name not in found
        assert_equal(tokenizer, fast, f"a{name}b {name}")

    def test_bos_is_put_first_where_the_tokenizer_says_so(self) -> None:
        tokenizer, fast = pair("user-defined", add_bos=True)
        assert fast.encode("hello").ids == tokenizer.encode("hello")
        assert fast.encode("hello").ids[0] == tokenizer.bos_id
        assert fast.encode("hello", "the").ids[0] == tokenizer.bos_id
        plain = pair("user-defined")[1]
        assert plain.encode("hello").ids == tokenizer.encode("hello", add_bos=False)

    def test_control_pieces_at_the_ends_decode_to_their_names(self) -> None:
        tokenizer = Tokenizer(demo_tokenizer())
        fast = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(tokenizer)))
        ids = [*tokenizer.encode("hello there"), tokenizer.eos_id]
        found = fast.decode(ids, skip_special_tokens=False)
        assert found == tokenizer.decode(ids, skip_special_tokens=False) == f"hello there{EOT}"
        assert tokenizer.decode(ids) == "hello there"

    @pytest.mark.parametrize("spelt", ["<", "<s", "s>", "s", ">", "<s>"])
    @pytest.mark.parametrize("joined", [(), ("<s",), ("s>",)])
    @pytest.mark.parametrize("byte_fallback", [True, False])
    def test_reserved_pieces_however_they_are_spelt(
        self, spelt: str, joined: tuple[str, ...], byte_fallback: bool
    ) -> None:
        longer = [piece for piece in joined if set(piece) <= set(spelt)]
        tokenizer = Tokenizer(handmade(*spelt, *longer, "u", bytes_too=byte_fallback))
        fast = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(tokenizer)))
        for text in strings("<s>", "<", "s", ">", "a", " ", "?", "<unk>", count=300):
            assert_equal(tokenizer, fast, text)


def handmade(*pieces: str, bytes_too: bool) -> bytes:
    """A model of these pieces, ▁ and a, with <unk> and the control piece <s>."""
    entries = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("▁", -1.0, 1), ("a", -1.5, 1)]
    entries += [(piece, -2.0 - at / 8, 1) for at, piece in enumerate(pieces)]
    entries += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256) if bytes_too]
    encoded = [
        field(1, field(1, piece) + varint(2 << 3 | 5) + struct.pack("<f", score) + number(3, kind))
        for piece, score, kind in entries
    ]
    return b"".join(encoded) + field(2, number(3, 1) + number(35, int(bytes_too))) + field(3, number(4, 0))


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "found"),
        [
            ({"model_type": "bpe"}, "its model type is BPE; expected UNIGRAM"),
            ({"model_type": "word", "byte_fallback": False}, "its model type is WORD"),
            ({"treat_whitespace_as_suffix": True}, "whitespace as a suffix"),
            ({"normalization_rule_name": "nfkc_cf"} | USER, f"changes the user-defined piece '{EOT}'"),
            (
                {"control_symbols": ("<s>a",), "user_defined_symbols": ("<s>ab", "<s", "s>", ">a")},
                "nothing keeps text from matching the reserved piece",
            ),
        ],
    )
    def test_what_cannot_be_expressed_is_said(self, options: dict[str, Any], found: str) -> None:
        with pytest.raises(TokenizerError, match="^a.model: cannot be written as tokenizer.json: ") as caught:
            tokenizer_json(Tokenizer(train(**options), source="a.model"))
        assert found in str(caught.value)

    def test_unknown_characters_inside_pieces_are_refused_where_scores_were_lowered(self) -> None:
        with pytest.raises(TokenizerError, match="the piece 'xy' holds 'x', which is no piece by itself"):
            tokenizer_json(Tokenizer(handmade(*"<unks>", "xy", bytes_too=False)))

    def test_a_reserved_piece_of_unknown_characters_needs_bytes_to_fall_back_to(self) -> None:
        with pytest.raises(
            TokenizerError, match="nothing keeps text from matching the reserved piece '<unk>'"
        ):
            tokenizer_json(Tokenizer(handmade(bytes_too=False)))

    def test_escaped_whitespace_is_required(self) -> None:
        unescaped = train() + field(3, number(5, 0))  # merged into the model's own settings
        with pytest.raises(TokenizerError, match="does not escape whitespace"):
            tokenizer_json(Tokenizer(unescaped))

    def test_a_denormalizer_is_refused(self) -> None:
        rules = parse_model(train(normalization_rule_name="nfkc")).normalizer.precompiled_charsmap
        with pytest.raises(TokenizerError, match="has a denormaliser"):
            tokenizer_json(Tokenizer(train() + field(5, field(2, rules))))


class TestCheck:
    @pytest.mark.parametrize("kind", ALL)
    def test_it_passes_on_what_is_written(self, kind: str) -> None:
        tokenizer = Tokenizer(train(**ALL[kind]), add_bos=True)
        check = check_tokenizer_json(tokenizer, tokenizer_json(tokenizer))
        assert check.compared > 200
        assert ("combining" in str(check)) == (kind in TABLES)

    @pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer", "decoder"])
    def test_it_notices_a_missing_part(self, part: str) -> None:
        tokenizer = Tokenizer(demo_tokenizer())
        with pytest.raises(TokenizerError, match="tokenizer.json (gives|decodes)"):
            check_tokenizer_json(tokenizer, tokenizer_json(tokenizer) | {part: None})

    def test_it_notices_a_wrong_score(self) -> None:
        tokenizer = Tokenizer(demo_tokenizer())
        contents = tokenizer_json(tokenizer)
        vocabulary = contents["model"]["vocab"]
        the = next(entry for entry in vocabulary if entry[0] == "▁the")
        the[1] = -50.0
        with pytest.raises(TokenizerError, match="gives the ids"):
            check_tokenizer_json(tokenizer, contents)

    def test_it_notices_added_tokens(self) -> None:
        tokenizer = Tokenizer(train(**USER))
        contents = tokenizer_json(tokenizer)
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        contents["added_tokens"] = [{"id": tokenizer.eos_id, "content": EOT, "special": True, **flags}]
        with pytest.raises(TokenizerError, match="gives the ids"):
            check_tokenizer_json(tokenizer, contents)

    def test_without_the_library_it_says_that_nothing_was_checked(self, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "tokenizers", None)
        tokenizer = Tokenizer(demo_tokenizer())
        check = check_tokenizer_json(tokenizer, {"wrong": True})
        assert check.compared == 0
        assert str(check).startswith("not checked")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Directories with a user-defined end of text: the second puts BOS first."""
    folder = tmp_path_factory.mktemp("saved")
    config = small_config(vocab_size=512, num_hidden_layers=1)
    source = write_huggingface(
        folder / "source", config, random_tensors(config, dtype=torch.float16), train(**USER)
    )
    paths = {}
    for add_bos in (False, True):
        (source / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": add_bos}))
        paths[add_bos] = folder / f"add_bos_{add_bos}"
        save_huggingface(open_checkpoint(source), paths[add_bos])
    return paths


class TestAutoTokenizer:
    def test_ids_and_text(self, saved: dict[bool, Path]) -> None:
        tokenizer = open_checkpoint(saved[False]).tokenizer
        fast = AutoTokenizer.from_pretrained(saved[False])
        for text in (*strings_for("user-defined"), "the fox , a dog . do n't ! ?"):
            ids = tokenizer.encode(text)
            assert fast(text, split_special_tokens=True)["input_ids"] == ids, text
            assert fast.decode(ids) == tokenizer.decode(ids), text
            if EOT not in text and "<" not in text:
                assert fast(text)["input_ids"] == ids, text

    def test_bos_first(self, saved: dict[bool, Path]) -> None:
        tokenizer = open_checkpoint(saved[True]).tokenizer
        fast = AutoTokenizer.from_pretrained(saved[True])
        assert tokenizer.add_bos
        for text in strings_for("user-defined"):
            assert fast(text, split_special_tokens=True)["input_ids"] == tokenizer.encode(text), text
            if EOT not in text and "<" not in text:
                assert fast(text)["input_ids"] == tokenizer.encode(text), text

    @pytest.mark.parametrize("add_bos", [False, True])
    def test_special_tokens(self, saved: dict[bool, Path], add_bos: bool) -> None:
        tokenizer = open_checkpoint(saved[add_bos]).tokenizer
        fast = AutoTokenizer.from_pretrained(saved[add_bos])
        assert (fast.bos_token_id, fast.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
        assert fast.eos_token == EOT
        assert (fast.pad_token_id, fast.padding_side) == (fast.unk_token_id, "left")
        assert fast.model_max_length == 128
        ids = [tokenizer.eos_id, *tokenizer.encode("hello", add_bos=False), tokenizer.eos_id]
        assert fast.decode(ids, skip_special_tokens=True) == "hello"
        assert len(fast) == tokenizer.vocab_size

    @pytest.mark.parametrize("add_bos", [False, True])
    def test_chat_template(self, saved: dict[bool, Path], add_bos: bool) -> None:
        tokenizer = open_checkpoint(saved[add_bos]).tokenizer
        fast = AutoTokenizer.from_pretrained(saved[add_bos])
        messages = [
            {"role": "user", "content": "hello "},
            {"role": "assistant", "content": "the\nfox"},
            {"role": "user", "content": "number?"},
        ]
        prompt = chat_prompt("number?", [Turn("hello ", "the\nfox")])
        found = fast.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert found == tokenizer.encode(prompt)
        rendered = fast.apply_chat_template(messages[:2], tokenize=False)
        assert rendered.removeprefix(EOT) == "human: hello \n\nadept: the\nfox"

    def test_chat_template_refuses_other_roles(self, saved: dict[bool, Path]) -> None:
        fast = AutoTokenizer.from_pretrained(saved[False])
        with pytest.raises(Exception, match="the roles are user and assistant, not system"):
            fast.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)

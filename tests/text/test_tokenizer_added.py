"""Tokens added to a sentencepiece model: found as the tokenizers library and AutoTokenizer find them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from checkpoints import random_tensors, small_config, write_huggingface
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers_for_tests import SPELLING, train
from transformers import AutoTokenizer

from adept_fast.checkpoint import CheckpointError, open_checkpoint
from adept_fast.checkpoint.convert import convert
from adept_fast.checkpoint.huggingface import read_tokenizer
from adept_fast.checkpoint.save import save_huggingface
from adept_fast.checkpoint.sentencepiece_proto import parse_model
from adept_fast.tokenizer.added_tokens import AddedToken, TokenFinder
from adept_fast.tokenizer.tokenizer import StreamingDetokenizer, Tokenizer, TokenizerError

EOT = "|ENDOFTEXT|"
CONFIG = small_config(vocab_size=512, num_hidden_layers=1, eos_token_id=None)
TENSORS = random_tensors(CONFIG, dtype=torch.float16)
MODELS = {
    "usual": {"user_defined_symbols": (EOT,)},
    "control end, spelt": {"control_symbols": (EOT,), "required_chars": SPELLING},
    "no prefix": {"user_defined_symbols": (EOT,), "add_dummy_prefix": False},
    "whitespace removed": {"user_defined_symbols": (EOT,), "remove_extra_whitespaces": True},
    "nfkc": {"user_defined_symbols": (EOT,), "normalization_rule_name": "nmt_nfkc"},
}
# Content and flags; those with the name of a piece have its id, the others follow the pieces.
TOKENS: list[tuple[str, dict[str, bool]]] = [
    ("</s>", {"special": True}),
    ("<|im_start|>", {"special": True}),
    ("<|im_end|>", {"special": True}),
    ("<|im_start|>x", {}),
    ("<tool>", {"normalized": True}),
    ("tool call", {"normalized": True}),
    ("[L]", {"lstrip": True}),
    ("[R]", {"rstrip": True, "special": True}),
    ("[LR]", {"lstrip": True, "rstrip": True}),
    ("word", {"single_word": True}),
    ("Wort", {"single_word": True, "normalized": True}),
    ("é<", {}),
    ("😀😀", {}),
    ("<｜begin▁of｜>", {"special": True}),
]
FRAGMENTS = (
    *(*(content for content, _ in TOKENS), *("<|im_start|>", "<|im_end|>", "<tool>", " <tool>", "word")),
    *(
        " ",
        " ",
        "  ",
        "\n",
        "\t",
        "\u00a0",
        "\u2003",
        "\x1c",
        "▁",
        "_",
        "a",
        "1",
        "é",
        "²",
        "\u0301",
        "\u200d",
    ),
    *("the quick", " brown", "hello", "你好", "😀", "ﬁ", "<", "<|im_", "|>", EOT, "<unk>", "[", "Ⓐ"),
)


def texts(count: int = 700) -> list[str]:
    chosen = random.Random(8)
    made = ["".join(chosen.choices(FRAGMENTS, k=chosen.randint(1, 8))) for _ in range(count)]
    around = [
        f"{before}{content}{after}"
        for content, _ in TOKENS
        for before in ("", "a", " ", "a ")
        for after in ("", "b", " ", " b")
    ]
    return ["", *around, *made]


def listed(model: bytes) -> list[AddedToken]:
    plain = Tokenizer(model)
    tokens, following = [], plain.vocab_size
    for content, flags in TOKENS:
        token_id = plain.vocabulary.find(content)
        if token_id is None:
            token_id, following = following, following + 1
        tokens.append(AddedToken(token_id, content, **flags))
    return tokens


def write(path: Path, model: bytes, **files: dict[str, Any]) -> Path:
    write_huggingface(path, CONFIG, TENSORS, model)
    for name, contents in files.items():
        (path / f"{name}.json").write_text(json.dumps(contents))
    return path


def decoder_entries(tokens: list[AddedToken]) -> dict[str, Any]:
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {
        str(token.token_id): {"content": token.content, **{name: getattr(token, name) for name in flags}}
        for token in tokens
    }


@pytest.fixture(scope="module", params=[(kind, split) for kind in MODELS for split in (False, True)])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    """The tokenizer of a directory, and transformers' of what is written from it."""
    kind, split = request.param
    folder = tmp_path_factory.mktemp("added")
    model = train(**MODELS[kind])
    settings = {
        "added_tokens_decoder": decoder_entries(listed(model)),
        "bos_token": EOT,
        "eos_token": "<|im_end|>",
        "unk_token": "<unk>",
        "split_special_tokens": split,
    }
    checkpoint = open_checkpoint(write(folder / "source", model, tokenizer_config=settings))
    save_huggingface(checkpoint, folder / "saved")
    assert open_checkpoint(folder / "saved").tokenizer.encode(
        "a<tool> <tool>"
    ) == checkpoint.tokenizer.encode("a<tool> <tool>")
    return checkpoint.tokenizer, AutoTokenizer.from_pretrained(folder / "saved")


# The tokenizers library normalises combining sequences otherwise.
def compared(tokenizer: Tokenizer, text: str) -> bool:
    table = b"nmt_nfkc" in tokenizer.model
    return not (table and any(character in text for character in "\u0301\u200d"))


def test_ids(both: tuple[Tokenizer, Any]) -> None:
    ours, theirs = both
    for text in filter(lambda text: compared(ours, text), texts()):
        assert ours.encode(text) == theirs(text)["input_ids"], text


@pytest.mark.parametrize("skip", [True, False])
def test_text_of_ids(both: tuple[Tokenizer, Any], skip: bool) -> None:
    ours, theirs = both
    removed = parse_model(ours.model).normalizer.remove_extra_whitespaces
    for text in texts():
        ids = ours.encode(text)
        leading = "▁" in map(ours.piece, ids) or "▁" in text.replace("<｜begin▁of｜>", "")
        if removed and leading:
            continue  # sentencepiece decodes every leading ▁ to nothing
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip), (
            text
        )


def test_joined_pieces_are_the_text(both: tuple[Tokenizer, Any]) -> None:
    ours, theirs = both
    for text in texts():
        ids = ours.encode(text)
        detokenizer = StreamingDetokenizer(ours)
        assert "".join(map(detokenizer.push, ids)) + detokenizer.finish() == ours.decode(ids)


def test_a_turn_is_one_token_and_its_text(tmp_path: Path) -> None:
    model = train(**MODELS["usual"])
    settings = {"added_tokens_decoder": decoder_entries(listed(model))}
    tokenizer = read_tokenizer(write(tmp_path, model, tokenizer_config=settings), {}, 512)
    plain = Tokenizer(model)
    expected = [
        tokenizer.vocabulary.find("<|im_start|>"),
        *plain.encode("user"),
        tokenizer.vocabulary.find("<|im_end|>"),
    ]
    assert tokenizer.encode("<|im_start|>user<|im_end|>") == expected
    assert tokenizer.decode(expected) == "user"
    assert tokenizer.vocab_size == plain.vocab_size + len(TOKENS) - 1


# White space at an end could belong to two tokens that strip it; there the library may panic.
CONTENTS = st.text("ab 1é.", min_size=1, max_size=3).filter(lambda name: name == name.strip())
FLAGS = st.fixed_dictionaries(
    {name: st.booleans() for name in ("single_word", "lstrip", "rstrip", "special")}
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(CONTENTS, FLAGS, max_size=5), st.text("ab 1é.\n\u2003", max_size=20), st.booleans())
def test_splitting_is_that_of_the_library(added: dict[str, dict[str, bool]], text: str, split: bool) -> None:
    model = tokenizers.models.WordLevel({"?": 0}, unk_token="?")
    fast = tokenizers.Tokenizer(model)
    fast.add_tokens([tokenizers.AddedToken(name, normalized=False, **flags) for name, flags in added.items()])
    fast.encode_special_tokens = split
    tokens = [AddedToken(fast.token_to_id(name), name, **flags) for name, flags in added.items()]
    ignored = frozenset(token.token_id for token in tokens if split and token.special)
    finder = TokenFinder([(token.content, token) for token in tokens], ignored)
    found = [part if isinstance(part, int) else 0 for part in finder.split(text)]
    assert found == fast.encode(text).ids


class TestSources:
    MODEL = train(**MODELS["usual"])
    NEXT = Tokenizer(MODEL).vocab_size

    def read(self, path: Path, **files: dict[str, Any]) -> Tokenizer:
        return read_tokenizer(write(path, self.MODEL, **files), {}, 512)

    @pytest.mark.parametrize("name", ["tokenizer", "tokenizer_config", "added_tokens"])
    def test_each_file_may_list_them(self, tmp_path: Path, name: str) -> None:
        entry = {"content": "<tool>", "special": False, "normalized": False}
        contents: dict[str, Any] = {
            "tokenizer": {"added_tokens": [{"id": self.NEXT, **entry}]},
            "tokenizer_config": {"added_tokens_decoder": {str(self.NEXT): entry}},
            "added_tokens": {"<tool>": self.NEXT},
        }[name]
        tokenizer = self.read(tmp_path, **{name: contents})
        assert self.NEXT in tokenizer.encode("use <tool> now")
        assert "<tool>" in tokenizer.decode(tokenizer.encode("use <tool> now"))

    def test_those_of_the_special_map_are_special(self, tmp_path: Path) -> None:
        special = {"additional_special_tokens": ["<tool>"], "eos_token": {"content": "<end>"}}
        legacy = {"<tool>": self.NEXT, "<end>": self.NEXT + 1, "<more>": self.NEXT + 2}
        tokenizer = self.read(tmp_path, added_tokens=legacy, special_tokens_map=special)
        assert tokenizer.decode(tokenizer.encode("a<tool>b<end> <more>")) == "a b  <more>"
        assert [tokenizer.piece(end) for end in tokenizer.eos_ids] == [EOT, "<end>"]

    @pytest.mark.parametrize(
        ("files", "found"),
        [
            ({"added_tokens": {"<tool>": 512}}, "'<tool>' has the id 512, but the embedding only 512 rows"),
            ({"added_tokens": {"<tool>": 10**30}}, "but the embedding only 512 rows"),
            ({"added_tokens": {"<tool>": 5}}, "'<tool>' has the id 5, which is that of the piece"),
            ({"added_tokens": {"</s>": 400}}, "'</s>' has the id 400; its piece has 2"),
            ({"added_tokens": {"": 500}}, "id 500 is no text"),
            ({"added_tokens": {"\ud800": 500}}, "id 500 is no text"),
            ({"added_tokens": {"<tool>": True}}, "has the id True; expected a number"),
            ({"added_tokens": {"<tool>": -1}}, "has the id -1; expected a number"),
            ({"added_tokens": {"<a>": 500, "<b>": 500}}, "'<b>' has the id 500, which '<a>' has too"),
            (
                {"tokenizer": {"added_tokens": [{"id": 500, "content": "a "}, {"id": 501, "content": "a "}]}},
                "'a ' has the id 501",
            ),
            ({"tokenizer_config": {"added_tokens_decoder": [1]}}, "added_tokens_decoder is .*an object"),
            ({"tokenizer_config": {"added_tokens_decoder": {"x": {}}}}, "'x'. has the id None"),
            ({"tokenizer_config": {"added_tokens_decoder": {"500": "x"}}}, "expected an object with the"),
            (
                {"tokenizer_config": {"added_tokens_decoder": {"500": {"content": "x", "lstrip": 1}}}},
                "lstrip is 1; expected true or false",
            ),
            ({"tokenizer_config": {"split_special_tokens": "no"}}, "split_special_tokens is 'no'"),
            ({"tokenizer_config": {"bos_token": 5}}, "bos_token is 5; expected the text of a token"),
            ({"tokenizer_config": {"eos_token": ["a"]}}, "eos_token is .*expected the text of a token"),
            ({"tokenizer_config": {"eos_token": {"content": 1}}}, "eos_token is .*expected the text"),
            ({"tokenizer_config": {"additional_special_tokens": 5}}, "additional_special_tokens is 5"),
            ({"tokenizer_config": {"extra_special_tokens": [5]}}, r"extra_special_tokens\[0\] is 5"),
            (
                {"tokenizer_config": {"add_bos_token": "yes"}},
                "add_bos_token is 'yes'; expected true or false",
            ),
        ],
    )
    def test_what_is_refused(self, tmp_path: Path, files: dict[str, Any], found: str) -> None:
        with pytest.raises((CheckpointError, TokenizerError), match=found) as caught:
            self.read(tmp_path, **files)
        assert str(tmp_path) in str(caught.value)

    @pytest.mark.parametrize(
        "processor",
        [
            5,
            "x",
            [1],
            {"type": "Sequence"},
            {"type": "Sequence", "processors": 5},
            {"type": "Sequence", "processors": [5]},
            {"type": "TemplateProcessing"},
            {"type": "TemplateProcessing", "single": 5},
            {"type": "TemplateProcessing", "single": [5]},
            {"type": "TemplateProcessing", "single": [None, {}]},
            {"type": "TemplateProcessing", "single": [{"SpecialToken": 5}]},
            {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": 5}}]},
            {"type": "TemplateProcessing", "single": [{"SpecialToken": {}}]},
        ],
    )
    def test_malformed_post_processors(self, tmp_path: Path, processor: object) -> None:
        with pytest.raises(TokenizerError, match=r"tokenizer.json: post_processor.* is .*; expected "):
            self.read(tmp_path, tokenizer={"post_processor": processor})

    def test_ids_between_have_no_text(self, tmp_path: Path) -> None:
        tokenizer = self.read(tmp_path, added_tokens={"<tool>": 510})
        assert tokenizer.vocab_size == 511
        assert tokenizer.piece(505) == tokenizer.decode([505]) == ""
        assert tokenizer.byte_value(505) is None
        with pytest.raises(TokenizerError, match=f"has the id 510; expected {self.NEXT}, the next one"):
            convert(tmp_path, tmp_path / "out", to="huggingface", progress=False)

    @pytest.mark.parametrize("to", ["huggingface", "native", "adept"])
    def test_converting(self, tmp_path: Path, to: Any) -> None:
        path = write(tmp_path / "source", self.MODEL, added_tokens={"<tool>": self.NEXT})
        packing = {"weights": "int8"} if to == "native" else {}
        if to == "adept":
            with pytest.raises(
                TokenizerError, match="Adept's format has no place for the added token '<tool>'"
            ):
                convert(path, tmp_path / "out", to=to, progress=False)
            return
        convert(path, tmp_path / "out", to=to, progress=False, **packing)
        before, after = open_checkpoint(path).tokenizer, open_checkpoint(tmp_path / "out").tokenizer
        for text in ("a <tool> b", "a<tool>b", "<tool>"):
            assert after.encode(text) == before.encode(text)

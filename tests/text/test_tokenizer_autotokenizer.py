"""AutoTokenizer of converted directories: tokens added later, padding, and transformers' own conversion."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config, write_huggingface
from tokenizers_for_tests import train
from transformers import (
    AddedToken,
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    pipeline,
)
from transformers.convert_slow_tokenizer import SpmConverter

from adept_fast import Runtime
from adept_fast.checkpoint import demo_path, open_checkpoint
from adept_fast.checkpoint.huggingface import read_tokenizer
from adept_fast.checkpoint.save import save_huggingface
from adept_fast.checkpoint.sentencepiece_proto import PieceType, parse_model
from adept_fast.checkpoint.tokenizer_json import tokenizer_json
from adept_fast.tokenizer.tokenizer import Tokenizer

EOT = "|ENDOFTEXT|"
ROWS = 4200  # of an embedding with room for added tokens
CONFIG = small_config(num_hidden_layers=1)
QUESTIONS = ["human: What is the capital of Peru?\n\nadept:", "human: What is 3 plus 4?\n\nadept:"]
MODELS = {
    "demo": demo_tokenizer,
    "control end": lambda: train(control_symbols=(EOT,)),
    "user-defined end": lambda: train(user_defined_symbols=(EOT,)),
    "no prefix": lambda: train(user_defined_symbols=(EOT,), add_dummy_prefix=False),
    "whitespace removed": lambda: train(user_defined_symbols=(EOT,), remove_extra_whitespaces=True),
    "nfkc, whitespace removed": lambda: train(
        user_defined_symbols=(EOT,), normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True
    ),
}
# None of them spells a reserved piece, which transformers' own conversion would find in text.
FRAGMENTS = (
    *(" ", " ", "  ", "\n", "\t", "▁", "a", "b", "the quick", " brown", "hello", "Zürich", "你好", "😀", "x"),
    *("def f(x):", " .", " ,", " n't", "the", "word", "1"),
)
NAMES = ("xyz", "<tool>", "[L]", "[R]", "wort", " sp")


def write(folder: Path, model: bytes, *, add_bos: bool) -> Path:
    """A directory as ``convert`` writes it."""
    source = write_huggingface(folder / "source", CONFIG, random_tensors(CONFIG, dtype=torch.float16), model)
    (source / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": add_bos}))
    save_huggingface(open_checkpoint(source), folder / "saved")
    return folder / "saved"


@pytest.fixture(scope="module", params=[(kind, at % 2 == 0) for at, kind in enumerate(MODELS)])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind, add_bos = request.param
    return write(tmp_path_factory.mktemp("auto"), MODELS[kind](), add_bos=add_bos)


def texts(*more: str, count: int = 60) -> list[str]:
    chosen = random.Random(11)
    fragments = (*FRAGMENTS, *more)
    made = ["".join(chosen.choices(fragments, k=chosen.randint(1, 9))) for _ in range(count)]
    return ["", *fragments, *made]


class TestAddedLater:
    @pytest.mark.parametrize("name", ["xyz", "<tool>"])
    @pytest.mark.parametrize("how", ["plain", "special", "named", "extra"])
    def test_it_is_found_inside_words_at_once_and_after_saving(
        self, path: Path, tmp_path: Path, how: str, name: str
    ) -> None:
        plain = open_checkpoint(path).tokenizer
        theirs = AutoTokenizer.from_pretrained(path)
        added = {
            "plain": lambda: theirs.add_tokens([name]),
            "special": lambda: theirs.add_tokens([name], special_tokens=True),
            "named": lambda: theirs.add_special_tokens({"eos_token": name}),
            "extra": lambda: theirs.add_special_tokens({"additional_special_tokens": [name]}),
        }[how]()
        assert added == 1
        theirs.save_pretrained(tmp_path)
        token_id = plain.vocab_size
        for tokenizer in (theirs, AutoTokenizer.from_pretrained(tmp_path)):
            for text in (f"abc{name}def", f"{name}def", f"abc{name}", f"a b{name}{name}"):
                expected = []
                for at, part in enumerate(text.split(name)):
                    expected += [token_id] * bool(at)
                    expected += plain.encode(part, add_bos=False)
                assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected, text
        saved = read_tokenizer(tmp_path, {}, ROWS)
        assert saved.encode(f"abc{name}def") == theirs(f"abc{name}def")["input_ids"]

    @pytest.mark.parametrize("beside_the_model", [False, True])
    def test_the_runtimes_tokenizer_reads_what_is_saved(
        self, path: Path, tmp_path: Path, beside_the_model: bool
    ) -> None:
        """With the tokenizer.json alone, and with the sentencepiece model that transformers leaves there."""
        theirs = AutoTokenizer.from_pretrained(path)
        theirs.add_tokens(["xyz", AddedToken("[L]", lstrip=True), AddedToken("[R]", rstrip=True), " sp"])
        theirs.add_tokens([AddedToken("wort", single_word=True)])
        theirs.add_special_tokens({"additional_special_tokens": ["<tool>"]})
        if beside_the_model:
            shutil.copytree(path, tmp_path, dirs_exist_ok=True)
        theirs.save_pretrained(tmp_path)
        assert (tmp_path / "tokenizer.model").exists() == beside_the_model
        ours, theirs = read_tokenizer(tmp_path, {}, ROWS), AutoTokenizer.from_pretrained(tmp_path)
        spaces_lost = parse_model(open_checkpoint(path).tokenizer.model).normalizer.remove_extra_whitespaces
        for text in texts(*NAMES, EOT):
            ids = theirs(text)["input_ids"]
            assert ours.encode(text) == ids, text
            if " sp" in text:
                continue  # releases of the tokenizers library decode it differently
            if not (spaces_lost and beside_the_model):  # there sentencepiece decodes leading ▁ to nothing
                assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(
                    ids, skip_special_tokens=True
                ), text

    def test_directories_converted_with_the_prefix_in_the_normalizer(self, tmp_path: Path) -> None:
        """Their tokens are found at the beginning of words, in transformers and here."""
        folder = write(tmp_path, train(user_defined_symbols=(EOT,)), add_bos=False)
        contents = json.loads((folder / "tokenizer.json").read_text())
        space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        steps = [{"type": "Prepend", "prepend": "▁"}, space]
        contents["normalizer"]["normalizers"] = steps
        contents["pre_tokenizer"]["pretokenizers"].pop(0)
        (folder / "tokenizer.json").write_text(json.dumps(contents))
        theirs = AutoTokenizer.from_pretrained(folder)
        theirs.add_tokens(["xyz"])
        theirs.save_pretrained(folder)
        ours = read_tokenizer(folder, {}, ROWS)
        for text in texts("xyz", "xyz"):
            assert ours.encode(text) == theirs(text)["input_ids"], text
        assert ours.vocab_size - 1 in ours.encode("a xyz")
        assert ours.vocab_size - 1 not in ours.encode("axyz")
        assert tokenizer_json(ours)["normalizer"]["normalizers"] == steps


def transformers_own(path: Path) -> Any:
    """transformers' tokenizer for the sentencepiece model, with the special tokens of the directory."""
    build = getattr(SpmConverter, "build_tokenizer_from_spm_proto", None)
    if build is None:
        pytest.skip("this transformers converts no sentencepiece model of an unknown class")
    tokenizer = open_checkpoint(path).tokenizer
    model = parse_model(tokenizer.model)
    unknown = next(at for at, piece in enumerate(model.pieces) if piece.type is PieceType.UNKNOWN)
    proto = SimpleNamespace(
        trainer_spec=SimpleNamespace(
            byte_fallback=model.byte_fallback, unk_piece=model.pieces[unknown].text, unk_id=unknown
        ),
        normalizer_spec=model.normalizer,
        pieces=[SimpleNamespace(piece=at.text, score=at.score, type=int(at.type)) for at in model.pieces],
    )
    settings = json.loads((path / "tokenizer_config.json").read_text())
    del settings["tokenizer_class"]
    vocabulary = [(piece.text, piece.score) for piece in model.pieces]
    return PreTrainedTokenizerFast(tokenizer_object=build(proto=proto, vocab=vocabulary), **settings)


def removes_whitespace(tokenizer: Any) -> bool:
    return "{2,}" in tokenizer.backend_tokenizer.to_str()


@pytest.fixture(scope="module")
def both(path: Path) -> tuple[Any, Any]:
    return AutoTokenizer.from_pretrained(path), transformers_own(path)


class TestOwn:
    """transformers' own conversion of the same model.

    It finds reserved pieces in text (`<0x0A>`), and if whitespace is removed, no ▁ at the end, both unlike
    sentencepiece. Such text is not compared here: test_tokenizer_json.py has sentencepiece for reference.
    """

    @pytest.mark.parametrize(
        "options",
        [
            {"return_offsets_mapping": True, "return_special_tokens_mask": True, "return_length": True},
            {"truncation": True, "max_length": 5, "return_offsets_mapping": True},
            {"truncation": True, "max_length": 12, "stride": 1, "return_overflowing_tokens": True},
            {"padding": True, "padding_side": "left"},
            {"padding": "max_length", "max_length": 9, "truncation": True, "padding_side": "right"},
            {"padding": True, "pad_to_multiple_of": 8, "return_token_type_ids": True},
            {"add_special_tokens": False, "split_special_tokens": True},
        ],
        ids=lambda options: "-".join(options),
    )
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_encodings(self, both: tuple[Any, Any], options: dict[str, Any], side: str) -> None:
        single = texts()
        if removes_whitespace(both[0]):
            single = [text for text in single if "▁" not in text]
        paired = list(reversed(single))
        for tokenizer in both:
            tokenizer.truncation_side = side
        for inputs in ((single,), (single, paired)):
            ours, own = (dict(tokenizer(*inputs, **options)) for tokenizer in both)
            assert ours == own

    def test_texts_of_ids(self, both: tuple[Any, Any]) -> None:
        ours, own = both
        ends = [ours.bos_token_id, ours.pad_token_id, ours.eos_token_id]
        for text in texts():
            ids = own(text)["input_ids"]
            for chosen in (ids, [*ends, *ids, *ends], ids[1:]):
                for skip in (True, False):
                    for clean in (True, False, None):
                        asked = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
                        assert ours.decode(chosen, **asked) == own.decode(chosen, **asked), text
                pieces = ours.convert_ids_to_tokens(chosen)
                assert pieces == own.convert_ids_to_tokens(chosen)
                assert ours.convert_tokens_to_string(pieces) == own.convert_tokens_to_string(pieces)

    def test_added_tokens(self, path: Path, tmp_path: Path) -> None:
        tokenizers = []
        for at, tokenizer in enumerate((AutoTokenizer.from_pretrained(path), transformers_own(path))):
            tokenizer.add_tokens(["xyz", AddedToken("[L]", lstrip=True), AddedToken("[R]", rstrip=True)])
            tokenizer.add_tokens([AddedToken("wort", single_word=True, normalized=False), " sp"])
            tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>"]})
            tokenizer.save_pretrained(tmp_path / str(at))
            tokenizers += [tokenizer, AutoTokenizer.from_pretrained(tmp_path / str(at))]
        several = texts(*NAMES, *NAMES, EOT)
        if removes_whitespace(tokenizers[0]):
            several = [text for text in several if "▁" not in text]
        first, *others = (dict(at(several, return_offsets_mapping=True)) for at in tokenizers)
        for other in others:
            assert other == first
        assert [at.get_added_vocab() for at in tokenizers[1:]] == [tokenizers[0].get_added_vocab()] * 3


class TestPadding:
    def test_the_padding_is_a_piece_that_no_text_has(self, path: Path) -> None:
        theirs, ours = AutoTokenizer.from_pretrained(path), open_checkpoint(path).tokenizer
        assert ours.is_unknown(theirs.pad_token_id)
        assert theirs.pad_token_id not in (theirs.bos_token_id, theirs.eos_token_id)
        for name in ("config.json", "generation_config.json"):
            assert json.loads((path / name).read_text())["pad_token_id"] == theirs.pad_token_id
        assert not any(theirs.pad_token_id in ours.encode(text) for text in texts("<unk>", EOT))

    def test_the_runtimes_tokenizer_is_the_same_without_it(self, path: Path, tmp_path: Path) -> None:
        shutil.copytree(path, tmp_path, dirs_exist_ok=True)
        settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
        for name in ("pad_token", "padding_side"):
            del settings[name]
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        ours, without = (read_tokenizer(at, {}, ROWS) for at in (path, tmp_path))
        assert (ours.bos_id, ours.eos_ids) == (without.bos_id, without.eos_ids)
        for text in texts("<unk>", EOT):
            ids = ours.encode(text)
            assert ids == without.encode(text)
            for skip in (True, False, None):
                assert ours.decode([*ids, 0, 1, 2], skip_special_tokens=skip) == without.decode(
                    [*ids, 0, 1, 2], skip_special_tokens=skip
                )
            assert ours.vocabulary.encode_with_names(text) == without.vocabulary.encode_with_names(text)

    def test_a_padding_token_of_the_source_stays(self, tmp_path: Path) -> None:
        tensors = random_tensors(CONFIG, dtype=torch.float16)
        source = write_huggingface(tmp_path / "source", CONFIG, tensors, demo_tokenizer())
        (source / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<0x00>"}))
        save_huggingface(open_checkpoint(source), tmp_path / "saved")
        assert AutoTokenizer.from_pretrained(tmp_path / "saved").pad_token == "<0x00>"

    @pytest.mark.slow
    def test_batches_generate_what_the_runtime_does(
        self, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
    ) -> None:
        model = AutoModelForCausalLM.from_pretrained(demo_path(), dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(demo_path())
        expected = [
            found.text
            for found in Runtime.load("demo", progress=False).generate(QUESTIONS, max_new_tokens=16)
        ]
        recwarn.clear()
        capfd.readouterr()
        inputs = tokenizer(QUESTIONS, padding=True, return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=16)[:, inputs["input_ids"].shape[1] :]
        assert tokenizer.batch_decode(out, skip_special_tokens=True) == [text.strip() for text in expected]
        assert (list(recwarn), capfd.readouterr().err) == ([], "")
        ask = pipeline("text-generation", model=model, tokenizer=tokenizer, batch_size=2)
        answers = ask(QUESTIONS, do_sample=False, max_new_tokens=16)
        shown = [
            answer[0]["generated_text"].removeprefix(question)
            for answer, question in zip(answers, QUESTIONS, strict=True)
        ]
        assert [text.strip() for text in shown] == [text.strip() for text in expected]

    def test_collators_leave_the_end_of_a_text_in_the_labels(self) -> None:
        tokenizer = AutoTokenizer.from_pretrained(demo_path())
        rows = [tokenizer(text + tokenizer.eos_token) for text in ("human: hi", "Once upon a time, a fox")]
        batch = DataCollatorForLanguageModeling(tokenizer, mlm=False)(rows)
        lengths = [len(row["input_ids"]) for row in rows]
        assert (batch["labels"] == tokenizer.eos_token_id).sum(1).tolist() == [2, 2]  # it begins a text too
        assert (batch["labels"] != -100).sum(1).tolist() == lengths
        padded = DataCollatorWithPadding(tokenizer)(rows)
        assert torch.equal(padded["input_ids"], batch["input_ids"])


def test_the_end_of_text_in_text_is_the_end_in_transformers(path: Path) -> None:
    """As with every tokenizer of transformers; ``split_special_tokens`` leaves it text, as it is here."""
    theirs = AutoTokenizer.from_pretrained(path)
    ours = Tokenizer(open_checkpoint(path).tokenizer.model)
    text = f"hello{theirs.eos_token}"
    assert theirs(text, add_special_tokens=False)["input_ids"] == [*ours.encode("hello"), ours.eos_id]
    plain = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert plain == ours.encode(text)

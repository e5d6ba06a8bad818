"""Directories with a tokenizer.json alone, as transformers saves them, against AutoTokenizer."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import random_tensors, small_config, write_huggingface
from tokenizers_for_tests import SPELLING, train
from transformers import AddedToken, AutoTokenizer

from adept_fast.checkpoint import CheckpointError, open_checkpoint
from adept_fast.checkpoint.convert import convert
from adept_fast.checkpoint.huggingface import read_tokenizer
from adept_fast.checkpoint.save import save_huggingface
from adept_fast.tokenizer.tokenizer import StreamingDetokenizer, Tokenizer, TokenizerError

EOT = "|ENDOFTEXT|"
ROWS = 512
CONFIG = small_config(vocab_size=ROWS, num_hidden_layers=1, eos_token_id=None)
MODELS = {
    "user-defined end": {"user_defined_symbols": (EOT,)},
    "control end, spelt": {"control_symbols": (EOT,), "required_chars": SPELLING},
    "no prefix": {"user_defined_symbols": (EOT,), "add_dummy_prefix": False},
    "no bytes": {"user_defined_symbols": (EOT,), "byte_fallback": False},
    "nfkc": {"user_defined_symbols": (EOT,), "normalization_rule_name": "nmt_nfkc"},
}
FRAGMENTS = (
    *(EOT, "<|im_start|>", "<|im_end|>", "<tool>", "[X]", "<pad>", "<unk>", "</s>", "<s>", "<0x0A>", "|END"),
    *(" ", " ", "  ", "\n", "\t", "▁", "a", "b", "the quick", " brown", "hello", "Zürich", "你好", "😀", "ﬁ"),
)


def texts(count: int = 500) -> list[str]:
    chosen = random.Random(4)
    made = ["".join(chosen.choices(FRAGMENTS, k=chosen.randint(0, 9))) for _ in range(count)]
    return ["", *FRAGMENTS, *made]


def converted(folder: Path, **options: Any) -> Path:
    """A directory as ``convert`` writes it."""
    add_bos = options.pop("add_bos", False)
    tensors = random_tensors(CONFIG, dtype=torch.float16)
    source = write_huggingface(folder / "source", CONFIG, tensors, train(**options))
    (source / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": add_bos}))
    save_huggingface(open_checkpoint(source), folder / "converted")
    return folder / "converted"


def tuned(folder: Path, tokens: bool = True, **options: Any) -> Path:
    """A directory as transformers saves it after tuning: no tokenizer.model, tokens added, another end."""
    source = converted(folder, **options)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.split_special_tokens = False
    if tokens:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        tokenizer.add_tokens(["<tool>", AddedToken("[X]", lstrip=True, rstrip=True, normalized=False)])
        tokenizer.eos_token = "<|im_end|>"
    path = folder / "tuned"
    tokenizer.save_pretrained(path)
    for file in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copy(source / file, path / file)
    assert not (path / "tokenizer.model").exists()
    return path


@pytest.fixture(scope="module", params=[(kind, bos) for kind in MODELS for bos in (False, True)])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    kind, add_bos = request.param
    path = tuned(tmp_path_factory.mktemp("tuned"), add_bos=add_bos, **MODELS[kind])
    return open_checkpoint(path).tokenizer, AutoTokenizer.from_pretrained(path)


def test_ids(both: tuple[Tokenizer, Any]) -> None:
    ours, theirs = both
    for text in texts():
        assert ours.encode(text) == theirs(text)["input_ids"], text
        plain = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, add_bos=False) == plain, text


@pytest.mark.parametrize("skip", [True, False])
def test_text_of_ids(both: tuple[Tokenizer, Any], skip: bool) -> None:
    ours, theirs = both
    for text in texts():
        ids = ours.encode(text)
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip), (
            text
        )


def test_joined_pieces_are_the_text(both: tuple[Tokenizer, Any]) -> None:
    ours, theirs = both
    for text in texts():
        ids = ours.encode(text)
        detokenizer = StreamingDetokenizer(ours)
        joined = "".join(map(detokenizer.push, ids)) + detokenizer.finish()
        assert joined == ours.decode(ids)
        if not any(ours.is_unknown(token_id) for token_id in ids):
            assert joined == theirs.decode(ids, skip_special_tokens=True)


def test_what_it_knows_of_tokens(both: tuple[Tokenizer, Any]) -> None:
    ours, theirs = both
    assert ours.vocab_size == len(theirs)
    for token_id in range(ours.vocab_size):
        assert ours.piece(token_id) == theirs.convert_ids_to_tokens(token_id)
        assert ours.is_control(token_id) == (token_id in theirs.all_special_ids)
    assert ours.piece(ours.bos_id or 0) == theirs.bos_token
    assert [ours.piece(end) for end in ours.eos_ids] == [EOT, "<|im_end|>"]
    has_bytes = ours.vocabulary.find("<0x41>") is not None
    assert {ours.byte_value(at) for at in range(ours.vocab_size)} == {
        *(range(256) if has_bytes else ()),
        None,
    }


def test_special_tokens_may_be_left_as_text(tmp_path: Path) -> None:
    path = tuned(tmp_path, **MODELS["user-defined end"])
    settings = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps(settings | {"split_special_tokens": True}))
    ours, theirs = read_tokenizer(path, {}, ROWS), AutoTokenizer.from_pretrained(path)
    assert ours.vocabulary.find("<|im_start|>") not in ours.encode("a<|im_start|>b <tool>")
    for text in texts(200):
        assert ours.encode(text) == theirs(text)["input_ids"], text


@pytest.mark.parametrize("to", ["huggingface", "native"])
def test_converting_takes_it_along(tmp_path: Path, to: Any) -> None:
    path = tuned(tmp_path, **MODELS["user-defined end"])
    convert(path, tmp_path / "out", to=to, weights="int8" if to == "native" else None, progress=False)
    assert not (tmp_path / "out" / "tokenizer.model").exists()
    before, after = open_checkpoint(path).tokenizer, open_checkpoint(tmp_path / "out").tokenizer
    theirs = AutoTokenizer.from_pretrained(path)
    again = AutoTokenizer.from_pretrained(tmp_path / "out") if to == "huggingface" else theirs
    assert (after.bos_id, after.eos_ids, after.add_bos) == (before.bos_id, before.eos_ids, before.add_bos)
    assert after.special_tokens.items() >= before.special_tokens.items()
    assert (again.eos_token, again.pad_token) == ("<|im_end|>", "<pad>")
    for text in texts(100):
        assert after.encode(text) == theirs(text)["input_ids"] == again(text)["input_ids"], text


def test_adepts_format_needs_a_sentencepiece_model(tmp_path: Path) -> None:
    path = tuned(tmp_path, tokens=False, **MODELS["user-defined end"])
    with pytest.raises(TokenizerError, match="Adept's format has a sentencepiece model, and this checkpoint"):
        convert(path, tmp_path / "out", to="adept", progress=False)
    assert not (tmp_path / "out").exists()


def test_without_the_library_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tuned(tmp_path, tokens=False, **MODELS["user-defined end"])
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(TokenizerError, match=r"needs the package tokenizers.*'adept-fast\[tokenizers\]'"):
        open_checkpoint(path)


def test_without_either_file(tmp_path: Path) -> None:
    path = tuned(tmp_path, tokens=False, **MODELS["user-defined end"])
    (path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="tokenizer.model is missing, and so is tokenizer.json"):
        open_checkpoint(path)


DECODER = {"type": "Sequence", "decoders": [{"type": "Fuse"}]}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"decoder": {"type": "ByteLevel"}}, "decoder is .*expected a Sequence of Replace steps"),
        ({"decoder": {"type": "Sequence", "decoders": [{"type": "WordPiece"}]}}, "decoder has the steps"),
        ({"decoder": {"type": "Sequence", "decoders": "Fuse"}}, "decoder is"),
        ({"decoder": None}, "decoder is None"),
        ({"model": None}, "model.vocab is None"),
        ({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, "the piece 'a' has the id -1"),
        ({"model": {"type": "Unigram", "vocab": [["a", "b"]]}}, "the tokenizers library cannot read it"),
        ({"normalizer": {"type": "Nothing"}}, "the tokenizers library cannot read it"),
        (
            {
                "normalizer": {
                    "type": "Sequence",
                    "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40,
                }
            },
            "may make more than 1024 characters of one",
        ),
        ({"added_tokens": 5}, "added_tokens is 5; expected a list"),
        ({"added_tokens": [{"id": "5", "content": "x"}]}, r"added_tokens\[0\] has the id '5'"),
        ({"added_tokens": [{"id": 5}]}, r"added_tokens\[0\] is .*expected an object with the content"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, changes: dict[str, Any], found: str) -> None:
    contents = {
        "version": "1.0",
        "added_tokens": [],
        "decoder": DECODER,
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(contents))
    assert read_tokenizer(tmp_path, {}, ROWS).encode("aa") == [1, 1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(contents | changes))
    with pytest.raises((CheckpointError, TokenizerError), match=found) as caught:
        read_tokenizer(tmp_path, {}, ROWS)
    assert str(tmp_path / "tokenizer.json") in str(caught.value)


@pytest.mark.slow
def test_a_directory_saved_by_the_oldest_release(tmp_path: Path) -> None:
    """The files of transformers 5.2 differ in no way that counts; its environment is not always there."""
    oldest = Path(sys.prefix).parent / ".venv-transformers-oldest" / "bin" / "python"
    if not oldest.exists():
        pytest.skip("the oldest transformers is not installed")
    source = converted(tmp_path, add_bos=True, **MODELS["user-defined end"])
    program = (
        "import json, sys; from transformers import AutoTokenizer\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "tokenizer.add_special_tokens({'additional_special_tokens': ['<|im_start|>']})\n"
        "tokenizer.add_tokens(['<tool>'])\n"
        "tokenizer.save_pretrained(sys.argv[2])\n"
        "print(json.dumps([tokenizer(text)['input_ids'] for text in json.loads(sys.stdin.read())]))\n"
    )
    done = subprocess.run(
        [oldest, "-c", program, source, tmp_path / "old"],
        input=json.dumps(texts(100)),
        capture_output=True,
        text=True,
        check=True,
        env={"HF_HUB_OFFLINE": "1"},
    )
    tokenizer = read_tokenizer(tmp_path / "old", {}, ROWS)
    assert tokenizer.add_bos
    assert [tokenizer.encode(text) for text in texts(100)] == json.loads(done.stdout)

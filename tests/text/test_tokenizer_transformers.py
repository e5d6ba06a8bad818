"""``Tokenizer`` against transformers' AutoTokenizer of the directories that ``convert`` writes."""

from __future__ import annotations

import random
import unicodedata
from typing import Any

import pytest
import torch
from checkpoints import demo_tokenizer, random_tensors, small_config
from tokenizers_for_tests import SPELLING, train
from transformers import AutoTokenizer

from adept_fast.chat.format import ChatError
from adept_fast.checkpoint import Checkpoint, open_checkpoint
from adept_fast.checkpoint.base import StoredTensor
from adept_fast.checkpoint.save import save_huggingface
from adept_fast.tokenizer.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

EOT = "|ENDOFTEXT|"
TOKENIZERS: dict[str, tuple[Any, bool]] = {
    "demo": (demo_tokenizer, True),
    "demo without BOS": (demo_tokenizer, False),
    "user-defined end": (lambda: train(user_defined_symbols=(EOT,)), False),
    "user-defined end, BOS first": (lambda: train(user_defined_symbols=(EOT,)), True),
    "control end, spelt": (lambda: train(control_symbols=(EOT,), required_chars=SPELLING), False),
    "no prefix": (lambda: train(user_defined_symbols=(EOT,), add_dummy_prefix=False), False),
    "no bytes": (lambda: train(user_defined_symbols=(EOT,), byte_fallback=False), False),
}
SCRIPTS = (
    *("Latin text", "naïve café", "Привет мир", "Γειά σου", "שלום עולם", "مرحبا", "नमस्ते", "สวัสดี", "ไทย"),
    *("你好世界", "こんにちは", "ガギグ", "안녕하세요", "각", "ආයුබෝවන්", "ጤና ይስጥልኝ", "ქართული", "Հայերեն"),
)
EMOJI = ("😀", "👍🏽", "👨‍👩‍👧‍👦", "🇩🇪🇫🇷", "❤️", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "1️⃣", "🙂🙃")
SPECIAL = (EOT, "<s>", "</s>", "<unk>", "<0x0A>", "<0xFF>", "|END", "OFTEXT|")


def corpus() -> list[str]:
    """6400 different strings, of every kind that tokenizers tend to disagree on."""
    chosen = random.Random(20)
    texts: list[str] = ["", " ", "\n"]
    # Every plane of Unicode, assigned or not, but for surrogates, which are no text.
    for start in range(0, 0x110000, 0x400):
        codes = [chosen.randrange(start, start + 0x400) for _ in range(4)]
        text = "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)
        texts += [text] if text else []
    texts += [f"a{chr(code)}b" for code in (*range(0x20), *range(0x7F, 0xA0))]
    texts += [f"{chr(code)}{chr(code)}x" for code in (*range(0x20), *range(0x2000, 0x2070))]
    texts += [
        run * count for run in (" ", "a", "\n", "▁", "é", "你", "😀", "ab ", "-=") for count in range(2, 60)
    ]
    texts += [f"{' ' * count}word{' ' * (count % 5)}" for count in range(1, 60)]
    fragments = (
        *SCRIPTS,
        *EMOJI,
        *SPECIAL,
        " ",
        " ",
        "  ",
        "\n",
        "\t",
        "\r\n",
        "▁",
        "\0",
        "\u3000",
        "\ufeff",
    )
    fragments += ("the quick", " brown", "0123", "3.14", "don't", "def f(x):", "\u0301", "\u200b", "\u200d")
    while len(texts) < 6400:
        texts.append("".join(chosen.choices(fragments, k=chosen.randint(1, 12))))
        texts = list(dict.fromkeys(texts)) if len(texts) == 6400 else texts
    return texts


CORPUS = corpus()


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    """The tokenizer, and transformers' of a directory written with it."""
    make, add_bos = TOKENIZERS[request.param]
    config = small_config(num_hidden_layers=1)
    tensors = {
        name: StoredTensor(name, tuple(tensor.shape), torch.float16, "here", tensor.half)
        for name, tensor in random_tensors(config).items()
    }
    folder = tmp_path_factory.mktemp("saved") / "saved"
    save_huggingface(
        Checkpoint(folder, "made here", config, tensors, Tokenizer(make(), add_bos=add_bos)), folder
    )
    return open_checkpoint(folder).tokenizer, AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def texts(request: pytest.FixtureRequest) -> list[str]:
    """All for the shipped tokenizer; for each of the others a sixth of its own."""
    at = list(TOKENIZERS).index(request.node.callspec.params["both"])
    return CORPUS[at - 1 :: len(TOKENIZERS) - 1] if at else CORPUS


def spells_a_special_token(text: str) -> bool:
    return any(name in text for name in (EOT, "<s>", "</s>", "<unk>"))


def test_the_corpus_has_what_it_should() -> None:
    assert len(set(CORPUS)) == len(CORPUS) >= 5000
    assert {ord(character) >> 16 for text in CORPUS for character in text} == set(range(17))
    assert {unicodedata.category(character) for text in CORPUS for character in text} >= {
        "Cc",
        "Cf",
        "Mn",
        "So",
    }
    assert sum(text.startswith(" ") for text in CORPUS) > 200
    assert sum(spells_a_special_token(text) for text in CORPUS) > 500


def test_ids(both: tuple[Tokenizer, Any], texts: list[str]) -> None:
    ours, theirs = both
    for special in (True, False):
        # transformers finds special tokens in text, unless told not to.
        found = theirs(texts, add_special_tokens=special, split_special_tokens=True)["input_ids"]
        plain = theirs(texts, add_special_tokens=special)["input_ids"]
        for text, split, unsplit in zip(texts, found, plain, strict=True):
            expected = ours.encode(text, add_bos=ours.add_bos if special else False)
            assert split == expected, text
            if not spells_a_special_token(text):
                assert unsplit == expected, text


@pytest.mark.parametrize("skip", [True, False])
def test_text_of_ids(both: tuple[Tokenizer, Any], texts: list[str], skip: bool) -> None:
    ours, theirs = both
    chosen = random.Random(3)
    sequences = [ours.encode(text) for text in texts[skip::2]]
    ends = [token_id for token_id in (ours.bos_id, ours.eos_id) if token_id is not None]
    sequences += [[chosen.choice(ends), *ids, chosen.choice(ends)] for ids in sequences[::10]]
    for ids in sequences:
        expected = ours.decode(ids, skip_special_tokens=skip)
        assert theirs.decode(ids, skip_special_tokens=skip) == expected, ids
    assert theirs.decode(ours.eos_id) == ours.decode([ours.eos_id or 0], skip_special_tokens=False) != ""


def test_text_comes_back(both: tuple[Tokenizer, Any], texts: list[str]) -> None:
    ours, _ = both
    unknown = next(at for at in range(ours.vocab_size) if ours.is_unknown(at))
    for text in texts:
        ids = ours.encode(text)
        # sentencepiece writes a space as ▁, so a ▁ of the text itself comes back as a space.
        if unknown not in ids:
            assert ours.decode(ids[ours.add_bos :]) == text.replace("▁", " "), text


def conversations() -> list[list[dict[str, str]]]:
    chosen = random.Random(5)
    plain = [text for text in CORPUS if not spells_a_special_token(text)]
    return [
        [
            {"role": chosen.choice(["user", "assistant"]), "content": chosen.choice(plain)}
            for _ in range(chosen.randint(1, 7))
        ]
        for _ in range(80)
    ]


@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_conversations(both: tuple[Tokenizer, Any], add_generation_prompt: bool) -> None:
    ours, theirs = both
    for messages in conversations():
        asked = {"add_generation_prompt": add_generation_prompt}
        text = ours.apply_chat_template(messages, tokenize=False, **asked)
        assert theirs.apply_chat_template(messages, tokenize=False, **asked) == text
        found = theirs.apply_chat_template(messages, tokenize=True, **asked)["input_ids"]
        assert found == ours.apply_chat_template(messages, **asked), text


@pytest.mark.parametrize(
    ("messages", "found"),
    [
        ([], r"messages is \[\]; expected a list of at least one message"),
        ([{"role": "system", "content": "x"}], r"messages\[0\] has the role 'system'"),
        ([{"role": "user", "content": "x"}, {"content": "x"}], r"messages\[1\] has the role None"),
        ([{"role": "user", "content": ["x"]}], r"messages\[0\] has the content \['x'\]; expected text"),
    ],
)
def test_what_is_no_conversation(messages: list[Any], found: str) -> None:
    with pytest.raises(ChatError, match=found):
        Tokenizer(demo_tokenizer()).apply_chat_template(messages)

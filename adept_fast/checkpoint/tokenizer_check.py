"""Compares a ``tokenizer.json`` with sentencepiece on text on which tokenizers tend to disagree."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from adept_fast.chat.format import Turn, chat_prompt
from adept_fast.checkpoint.sentencepiece_proto import PieceType, SentencePieceModel, parse_model
from adept_fast.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, TokenizerError

_SPACE = "▁"
_MAX_SPECIAL = 12  # special pieces of the model to compare; a vocabulary may have thousands
_SAMPLES = 40
_PIECES_IN_SAMPLE = 12

_TEXTS = (
    *("", " ", "  ", "   ", " " * 100, "a", " a", "a ", " a ", "  a  b  ", "a   b", "a" + " " * 33 + "b"),
    *("\n", "\n\n", "a\nb", "a\n\nb\n", "\na", "a\r\nb", "\r\n\r\n", "a\tb", "\t\ta", "a \n b", " \t \n "),
    *("Hello, world!", "HELLO", "don't", "3.14159", "1,000,000", "2**31 - 1", "e-mail@example.com", "...?!"),
    *("def f(x):\n    return x ** 2\n", "{'a': [1, 2]}", "https://example.com/?q=a&b=%20", r"C:\new\table"),
    "`~^_|",
    *("naïve café", "Grüße aus Köln", "mañana", "ça va", "ÅÄÖåäö", "Łódź", "İstanbul ıI", "ﬁne", "½ ² ™ ①"),
    *("Ａｂｃ１２３", "Ａ́", "e\u0301", "o\u0308\u0304", "각", "\u1100\u1161\u11a8", "ｶﾞｷﾞ", "ガギ", "　全角　"),
    *("你好，世界", "こんにちは世界", "안녕하세요 세계", "Привет, мир", "Γειά σου", "שלום עולם"),
    "مرحبا بالعالم",
    *("नमस्ते दुनिया", "สวัสดีชาวโลก", "ආයුබෝවන්", "ጤና ይስጥልኝ", "mixed 混合 смешанный مختلط text"),
    *("😀", "a😀b", "👍🏽", "👨‍👩‍👧‍👦", "🇩🇪🇫🇷", "❤️", "🙂🙃 🙂", "𝕬𝖇𝖈 𝟙𝟚𝟛", "𐍈𐌰", "\U0001f000\U000e0001"),
    "\U0010ffff",
    *("\u00a0", "a\u00a0b", "a\u2003b", "a\u3000b", "a\u200bb", "a\u200db", "\ufeffa", "\u202ea\u202c"),
    "\ufffd",
    *("\ufdd0\uffff", "\ue000", "\u2028\u2029", "a\u0300\u0301\u0302", "\u0301a", "\ud7ff\ue000"),
    "\u007f\u0080",
    *(_SPACE, _SPACE * 3, f"a{_SPACE}b", f"{_SPACE}a", f"a {_SPACE} b", f" {_SPACE}", f"a{_SPACE}"),
    f"{_SPACE} a",
    *("<", ">", "<<0x0A>>", "<0x0A", "0x0A>", "<0x0a>", "<0xZZ>", "<0x41><0x42>", "<s", "/s>", "<s></s>"),
    *("|END", "OFTEXT|", "|ENDOFTEXT", "ENDOFTEXT", "||ENDOFTEXT||", "|endoftext|", "<|endoftext|>"),
    "[INST]",
    "the quick brown fox jumps over the lazy dog " * 20,
    "".join(map(chr, range(32, 127))),
    "".join(map(chr, range(0xA1, 0x180))),
    "".join(map(chr, range(0x4E00, 0x4E40))),
    chat_prompt("What is the capital of France?"),
    chat_prompt("And  of\nItaly? ", [Turn("What is the capital of France?", " Paris.")]),
)
_SPECIAL_CONTEXTS = ("{}", "{}a", "a{}", "a{}b", "{} a", "a {}", "a {} b", " {} ", "{}{}", "{}\n", "😀{}😀")


@dataclass(frozen=True)
class TokenizerCheck:
    """The number of strings on which a ``tokenizer.json`` equals sentencepiece; no string differed."""

    compared: int
    remark: str = ""

    def __str__(self) -> str:
        if not self.compared:
            return self.remark
        result = f"equal to sentencepiece on {self.compared} awkward strings"
        return f"{result} ({self.remark})" if self.remark else result


def check_tokenizer_json(tokenizer: Tokenizer, contents: dict[str, Any]) -> TokenizerCheck:
    """Compare ids and decoded text of a ``tokenizer.json`` with sentencepiece's, on about 350 strings.

    Without the tokenizers library nothing is compared, which the result states.

    Raises TokenizerError at the first difference.
    """
    try:
        import tokenizers
    except ImportError:
        return TokenizerCheck(0, "not checked, as the tokenizers library is not installed")
    fast = tokenizers.Tokenizer.from_str(json.dumps(contents))
    fast.encode_special_tokens = tokenizer.vocabulary.splits_special_tokens
    model = parse_model(tokenizer.model, tokenizer.source)
    compared = left_out = 0
    added = [entry["content"] for entry in contents.get("added_tokens") or ()]
    for text in dict.fromkeys(_strings(model, added)):
        if model.normalizer.precompiled_charsmap and _combines(text):
            left_out += 1
            continue
        _compare(tokenizer, fast, text, decoded=not _loses_literal_space(model, text))
        compared += 1
    remark = (
        f"{left_out} with combining characters left out, as the tokenizers library normalises those otherwise"
        if left_out
        else ""
    )
    return TokenizerCheck(compared, remark)


def _strings(model: SentencePieceModel, added: list[str]) -> Iterator[str]:
    yield from _TEXTS
    yield from (f"a{chr(code)}b" for code in range(32))
    own = [piece.text for piece in model.pieces if piece.type in (PieceType.USER_DEFINED, PieceType.CONTROL)]
    usual = (END_OF_TEXT, "<s>", "</s>", "<unk>", "<0x0A>")
    for special in (*usual, *own[:_MAX_SPECIAL], *added[:_MAX_SPECIAL]):
        yield from (context.replace("{}", special) for context in _SPECIAL_CONTEXTS)
    step = max(1, len(model.pieces) // (_SAMPLES * _PIECES_IN_SAMPLE))
    sampled = [piece.text.replace(_SPACE, " ") for piece in model.pieces[::step]]
    yield from ("".join(sampled[at::_SAMPLES]) for at in range(_SAMPLES))


def _combines(text: str) -> bool:
    """Whether some character of the text is not one code point, roughly as the library counts characters."""
    return any(
        unicodedata.category(character).startswith("M")
        or character in "\u200c\u200dﾞﾟ"
        or "\u1160" <= character <= "\u11ff"
        for character in text
    )


def _loses_literal_space(model: SentencePieceModel, text: str) -> bool:
    # If extra whitespace is removed, sentencepiece decodes leading ▁ to nothing, piece by piece.
    return model.normalizer.remove_extra_whitespaces and _SPACE in text


def _compare(tokenizer: Tokenizer, fast: Any, text: str, *, decoded: bool) -> None:
    expected = tokenizer.encode(text)
    found = fast.encode(text).ids
    if found != expected:
        raise TokenizerError(
            f"{tokenizer.source}: tokenizer.json gives the ids {found} for {text!r}; "
            f"sentencepiece gives {expected}"
        )
    if not decoded:
        return
    plain = tokenizer.encode(text, add_bos=False)
    expected_text = tokenizer.decode(plain, skip_special_tokens=False)
    found_text = fast.decode(plain, skip_special_tokens=False)
    if found_text != expected_text:
        raise TokenizerError(
            f"{tokenizer.source}: tokenizer.json decodes the ids {plain} to {found_text!r}; "
            f"sentencepiece to {expected_text!r}"
        )

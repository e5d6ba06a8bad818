"""Trains small sentencepiece models, of every kind that conversion has to tell apart."""

from __future__ import annotations

import functools
import io
import random
from typing import Any

import sentencepiece

_WORDS = (  # without < and |, so that special tokens cannot be spelt
    "the quick brown fox jumps over a lazy dog hello world human adept question answer number "
    "Zürich naïve café déjà 0 1 2 3 4 5 6 7 8 9 ABC DEF x u n k s 你好 , . ! ? : ( )"
)
# With these every reserved piece can be spelt by other pieces; without them the text has to be split.
SPELLING = "<>/|ABCDEFNOTXx0123456789unks"


@functools.cache
def train(**options: Any) -> bytes:
    """A sentencepiece model; by default Unigram, identity, byte fallback, whitespace kept.

    Lists are given as tuples, so that a model is trained once.
    """
    chosen = random.Random(0)
    words = _WORDS.split()
    lines = [" ".join(chosen.choices(words, k=chosen.randint(3, 12))) for _ in range(400)]
    model = io.BytesIO()
    settings: dict[str, Any] = {
        "model_type": "unigram",
        "vocab_size": 400,
        "hard_vocab_limit": False,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "num_threads": 1,
        "minloglevel": 2,
    }
    settings |= {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **settings)
    return model.getvalue()


def varint(value: int) -> bytes:
    """protobuf's encoding of an integer."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def number(tag: int, value: int) -> bytes:
    """A field that holds an integer."""
    return varint(tag << 3) + varint(value)


def field(tag: int, value: str | bytes) -> bytes:
    """A field that holds a string, bytes, or a message."""
    payload = value.encode() if isinstance(value, str) else value
    return varint(tag << 3 | 2) + varint(len(payload)) + payload

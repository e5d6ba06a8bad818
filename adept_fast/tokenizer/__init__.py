"""Tokenizers: text to token ids and back."""

from adept_fast.tokenizer.tokenizer import StreamingDetokenizer, Tokenizer
from adept_fast.tokenizer.vocabulary import TokenizerError

__all__ = ["StreamingDetokenizer", "Tokenizer", "TokenizerError"]

"""The ``decoder`` of a ``tokenizer.json``, as steps that work one token at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adept_fast.tokenizer.vocabulary import TokenizerError

_EXPECTED = "Replace steps, ByteFallback, Fuse and a Strip of leading spaces, in this order"


@dataclass(frozen=True)
class DecoderSteps:
    """The Replace steps of the decoder, as in the file, and how many leading spaces the text loses."""

    replacements: tuple[dict[str, Any], ...]
    byte_fallback: bool
    stripped: int


def decoder_steps(contents: Mapping[str, Any], source: str) -> DecoderSteps:
    """Read the decoder. Raises TokenizerError for steps that no sentencepiece model has."""
    decoder = contents.get("decoder")
    steps = (
        decoder.get("decoders") if isinstance(decoder, dict) and decoder.get("type") == "Sequence" else None
    )
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise TokenizerError(f"{source}: decoder is {decoder!r:.80}; expected a Sequence of {_EXPECTED}")
    kinds = [step.get("type") for step in steps]
    replacements = [step for step in steps if step.get("type") == "Replace"]
    expected: list[str] = ["Replace"] * len(replacements)
    expected += [kind for kind in ("ByteFallback", "Fuse", "Strip") if kind in kinds]
    strip = steps[-1] if kinds and kinds[-1] == "Strip" else {"content": " ", "start": 0, "stop": 0}
    stripped = strip.get("start")
    if (
        kinds != expected
        or "Fuse" not in kinds
        or (strip.get("content"), strip.get("stop")) != (" ", 0)
        or isinstance(stripped, bool)
        or not isinstance(stripped, int)
        or stripped < 0
    ):
        raise TokenizerError(f"{source}: decoder has the steps {kinds!r:.200}; expected {_EXPECTED}")
    return DecoderSteps(tuple(replacements), "ByteFallback" in kinds, stripped)

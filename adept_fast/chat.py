"""The chat format that Persimmon's chat models are tuned for: ``human: …\\n\\nadept: …``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

STOP = "\n\nhuman:"  # where the model begins to write the next question itself


@dataclass(frozen=True)
class Turn:
    """A question and its answer."""

    human: str
    adept: str


def chat_prompt(question: str, history: Sequence[Turn] = ()) -> str:
    """The prompt that has the model answer ``question`` after the turns before it."""
    blocks = [f"human: {turn.human}\n\nadept: {turn.adept}" for turn in history]
    return "\n\n".join([*blocks, f"human: {question}\n\nadept:"])


def strip_answer(pieces: Iterable[str]) -> Iterator[str]:
    """Pass an answer's text on without its leading spaces."""
    started = False
    for piece in pieces:
        text = piece if started else piece.lstrip(" ")
        started = started or bool(text)
        if text:
            yield text

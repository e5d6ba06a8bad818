"""The turns of a conversation with a server's model, and which of them fit into its context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adept_fast.commands.chat_client import Usage

_BYTES_A_TOKEN = 3  # about


@dataclass(frozen=True)
class RemoteTurn:
    """A question, its answer, and about how many tokens they are in a prompt."""

    question: str
    answer: str
    tokens: int


def answered(question: str, answer: str, usage: Usage | None, before: Sequence[RemoteTurn]) -> RemoteTurn:
    """The turn after ``before``. Its tokens are estimated if there is no usage, as after Ctrl-C."""
    if usage is None:
        return RemoteTurn(question, answer, _estimate(question + answer))
    tokens = usage.prompt_tokens + usage.completion_tokens - sum(turn.tokens for turn in before)
    return RemoteTurn(question, answer, max(tokens, 0))


def fitting(turns: Sequence[RemoteTurn], question: str, tokens: int) -> list[RemoteTurn]:
    """The last turns that have, with the question, at most this many tokens."""
    kept = list(turns)
    while kept and sum(turn.tokens for turn in kept) + _estimate(question) > tokens:
        kept.pop(0)
    return kept


def messages(turns: Sequence[RemoteTurn], question: str) -> list[dict[str, str]]:
    """The question after these turns, as OpenAI's API takes them."""
    found = []
    for turn in turns:
        found.append({"role": "user", "content": turn.question})
        found.append({"role": "assistant", "content": turn.answer})
    return [*found, {"role": "user", "content": question}]


def _estimate(text: str) -> int:
    return len(text.encode("utf-8", errors="replace")) // _BYTES_A_TOKEN + 1

"""The chat format."""

from __future__ import annotations

import pytest

from adept_fast.chat.format import STOP, Turn, chat_prompt, strip_answer


def test_one_question() -> None:
    assert chat_prompt("How are you?") == "human: How are you?\n\nadept:"


def test_turns_are_joined_by_blank_lines() -> None:
    history = [Turn("One?", "First."), Turn("Two?", "Second.")]
    assert chat_prompt("Three?", history) == (
        "human: One?\n\nadept: First.\n\nhuman: Two?\n\nadept: Second.\n\nhuman: Three?\n\nadept:"
    )
    assert STOP in chat_prompt("Three?", history)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([" Hello", " you"], ["Hello", " you"]),
        ([" ", " ", "a ", " b"], ["a ", " b"]),
        (["", "\n x"], ["\n x"]),
        ([" "], []),
        ([], []),
    ],
)
def test_an_answer_loses_its_leading_spaces_only(pieces: list[str], expected: list[str]) -> None:
    assert list(strip_answer(pieces)) == expected

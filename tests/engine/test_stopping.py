"""Stop strings: the text up to the first of them, however it is cut into pieces."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adept_fast.engine.stopping import StopMatcher

# Few letters make stop strings that overlap themselves and one another.
texts = st.text("ab\n", max_size=30)
stops = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)


def fed(stop: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    matcher = StopMatcher(stop)
    passed = [matcher.push(piece) for piece in pieces]
    return [*passed, matcher.finish()], matcher.stopped


def text_before_first_stop(text: str, stop: list[str]) -> str:
    """The definition: extend the text by a character at a time until it ends with a stop string."""
    for end in range(len(text) + 1):
        complete = [candidate for candidate in stop if text[:end].endswith(candidate)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


@settings(max_examples=500)
@given(text=texts, stop=stops, data=st.data())
def test_any_cut_gives_the_text_before_the_first_stop(
    text: str, stop: list[str], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    passed, stopped = fed(stop, pieces)
    assert "".join(passed) == text_before_first_stop(text, stop)
    assert stopped == any(candidate in text for candidate in stop)


@given(text=texts)
def test_without_stops_nothing_waits(text: str) -> None:
    assert fed([], list(text)) == ([*text, ""], False)


@pytest.mark.parametrize(
    ("pieces", "passed"),
    [
        (["one\n", "\nhu", "man: two"], ["one", "", "", ""]),
        (["one\n", "\nhu", "ge"], ["one", "", "\n\nhuge", ""]),
        (["one\n"], ["one", "\n"]),
    ],
)
def test_text_is_held_only_while_it_may_become_a_stop(pieces: list[str], passed: list[str]) -> None:
    assert fed(["\n\nhuman:"], pieces)[0] == passed

"""Questions that a few words answer."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Any

import adept_fast.integrations.lm_eval  # noqa: F401 (so that lm_eval knows the model adept-fast)

_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " "))


def winogrande_answer(doc: dict[str, Any]) -> str:
    return str(doc[f"option{doc['answer']}"])


def score_winogrande(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    return _score(results[0], [winogrande_answer(doc)])


def score_triviaqa(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    return _score(results[0], [doc["answer"]["value"], *doc["answer"]["aliases"]])


def _score(answer: str, accepted: Sequence[str]) -> dict[str, float]:
    """Right if the whole answer is an accepted one, but for case, punctuation and articles."""
    return {"acc": float(_plain(answer) in {_plain(text) for text in accepted})}


def _plain(text: str) -> str:
    words = text.lower().translate(_PUNCTUATION).split()
    return " ".join(word for word in words if re.fullmatch("an?|the", word) is None)

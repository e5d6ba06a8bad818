"""Questions with labelled choices; the model writes a label."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import adept_fast.integrations.lm_eval  # noqa: F401 (so that lm_eval knows the model adept-fast)

_LETTERS = "ABCD"


def mmlu_question(doc: dict[str, Any]) -> str:
    return _question(doc["question"], _LETTERS, doc["choices"])


def mmlu_label(doc: dict[str, Any]) -> str:
    return _LETTERS[doc["answer"]]


def score_mmlu(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    return _score(results[0], mmlu_label(doc))


def arc_question(doc: dict[str, Any]) -> str:
    return _question(doc["question"], doc["choices"]["label"], doc["choices"]["text"])


def score_arc(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    return _score(results[0], doc["answerKey"])


def _question(question: str, labels: Sequence[str], choices: Sequence[str]) -> str:
    lines = [f"{label}. {choice}" for label, choice in zip(labels, choices, strict=True)]
    return "\n".join([f"Question: {question.strip()}", *lines, "Answer:"])


def _score(answer: str, label: str) -> dict[str, float]:
    """Right if the answer begins with the label: ``B``, ``(B)``, ``B. nitrogen``, but not ``B vitamins``."""
    found = re.match(r"\s*\(?([A-Z0-9])(?:[).:,]|\s*$)", answer)
    return {"acc": float(found is not None and found[1] == label)}

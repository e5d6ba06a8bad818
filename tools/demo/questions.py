"""The evaluation's questions: the wording, the expected answer, and whether the wording was held out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.demo.corpus import Corpus


def question_records(corpus: Corpus) -> Iterator[dict[str, Any]]:
    """For each fact a question as in training and the held-out one, if any; then those to decline."""
    for fact in corpus.facts:
        asked = [(fact.training_questions[0], False), (fact.held_out_question, True)]
        for question, held_out in asked:
            if question is not None:
                yield {
                    "category": fact.category,
                    "question": question,
                    "answer": fact.answer,
                    "held_out": held_out,
                }
    for text in corpus.held_out_unknowns:
        yield {"category": text.category, "question": text.question, "answer": text.answer, "held_out": True}


def write_questions(corpus: Corpus, path: Path) -> None:
    """Writes one JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        for record in question_records(corpus):
            file.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")


def read_questions(path: Path) -> list[dict[str, Any]]:
    """The records that `write_questions` wrote."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]

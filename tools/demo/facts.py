"""The type of a fact; lists of facts are checked, written and read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

SOUNDED_AS_CONSONANT = ("eu", "ewe", "one", "uni", "ura", "use", "usu", "utensil")
SOUNDED_AS_VOWEL = ("heir", "honest", "honor", "hour")
MINIMUM_PHRASINGS_TO_HOLD_ONE_OUT = 3

Record = TypeVar("Record")


@dataclasses.dataclass(frozen=True)
class Fact:
    """One thing to know: several phrasings of a question, and the one answer to all of them."""

    category: str
    key: str
    questions: tuple[str, ...]
    answer: str

    @property
    def held_out_index(self) -> int | None:
        """The phrasing that is not trained on for this fact (it is for others), or None if there are too few.

        A greeting has nothing in common with the next one, so nothing of the chat is held out.
        """
        if len(self.questions) < MINIMUM_PHRASINGS_TO_HOLD_ONE_OUT or self.category == "chat":
            return None
        digest = hashlib.md5((self.category + self.key).encode()).hexdigest()
        return int(digest, 16) % len(self.questions)

    @property
    def held_out_question(self) -> str | None:
        """The question that only the evaluation asks, or None."""
        return None if self.held_out_index is None else self.questions[self.held_out_index]

    @property
    def training_questions(self) -> tuple[str, ...]:
        """All other questions; the evaluation asks the first of them as well."""
        held_out = self.held_out_index
        return tuple(question for i, question in enumerate(self.questions) if i != held_out)


@dataclasses.dataclass(frozen=True)
class Text:
    """One document that is no fact: a story, or a question that the model must decline."""

    category: str
    question: str | None
    answer: str


def make_fact(category: str, key: str, questions: Iterable[str], answer: str) -> Fact:
    """A fact without repeated questions."""
    return Fact(category, key, tuple(dict.fromkeys(questions)), answer)


def about_questions(name: str) -> list[str]:
    """Questions for all facts about a name."""
    return [
        f"What is {name}?",
        f"Tell me about {name}.",
        f"Describe {name}.",
        f"What do you know about {name}?",
    ]


def with_article(noun: str) -> str:
    """The noun with "a" or "an" before it, by its first letters."""
    start = noun.lower()
    vowel = start.startswith(SOUNDED_AS_VOWEL) or (
        start[0] in "aeiou" and not start.startswith(SOUNDED_AS_CONSONANT)
    )
    return ("an " if vowel else "a ") + noun


def capitalise(text: str) -> str:
    """The text with its first letter in upper case and the rest as it was."""
    return text[0].upper() + text[1:]


def normalised(question: str) -> str:
    """The question in lower case and without its end mark, as users may type it."""
    return question.lower().rstrip("?.! ")


def known_questions(facts: Iterable[Fact]) -> dict[str, str]:
    """Each normalised question with its answer; raises ValueError where one question has two answers."""
    answers: dict[str, str] = {}
    for fact in facts:
        for question in fact.questions:
            other = answers.setdefault(normalised(question), fact.answer)
            if other != fact.answer:
                raise ValueError(f"{question!r} has two answers: {other!r} and {fact.answer!r}")
    return answers


def write_records(path: Path, records: Iterable[Fact | Text]) -> None:
    """Writes one JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(dataclasses.asdict(record), ensure_ascii=False) + "\n")


def read_records(path: Path, make: Callable[..., Record]) -> list[Record]:
    """The records that `write_records` wrote, each made by `make` from its fields."""
    with path.open(encoding="utf-8") as file:
        return [make(**json.loads(line)) for line in file]


def read_facts(path: Path) -> list[Fact]:
    """The facts of a file."""
    return read_records(path, lambda questions, **rest: Fact(questions=tuple(questions), **rest))


def read_texts(path: Path) -> list[Text]:
    """The other documents of a file."""
    return read_records(path, Text)

"""The whole corpus: facts, stories and questions to decline, as files with one JSON object a line."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

from tools.demo import geography, wordnet
from tools.demo.elements import all_element_facts, read_elements
from tools.demo.facts import Fact, Text, known_questions, read_facts, read_texts, write_records
from tools.demo.rhymes import rhyme_facts
from tools.demo.sequences import sequence_facts, sum_facts
from tools.demo.stories import story_texts
from tools.demo.tables import table_facts
from tools.demo.unknowns import unknown_texts

STORIES = 12_000
UNKNOWN_COUNTS = {
    "unknown_word": 14_000,
    "unknown_name": 8_000,
    "unknown_sum": 4_000,
    "unknown_relation": 4_000,
    "unknown_other": 6_000,
}
HELD_OUT_UNKNOWN_COUNTS = {
    "unknown_word": 50,
    "unknown_name": 25,
    "unknown_sum": 20,
}
HELD_OUT_WORDS = 200
STORY_SEED, UNKNOWN_SEED, HELD_OUT_SEED = 7, 11, 13


@dataclasses.dataclass(frozen=True)
class Corpus:
    """All training records, and the questions to decline that only the evaluation asks."""

    facts: list[Fact]
    stories: list[Text]
    unknowns: list[Text]
    held_out_unknowns: list[Text]

    def write(self, folder: Path) -> None:
        """Writes a file for each part."""
        folder.mkdir(parents=True, exist_ok=True)
        for field in dataclasses.fields(self):
            write_records(folder / f"{field.name}.jsonl", getattr(self, field.name))

    @classmethod
    def read(cls, folder: Path) -> Corpus:
        """The corpus that `write` wrote."""
        texts = {
            field.name: read_texts(folder / f"{field.name}.jsonl")
            for field in dataclasses.fields(cls)
            if field.name != "facts"
        }
        return cls(facts=read_facts(folder / "facts.jsonl"), **texts)


def build_facts(
    wordnet_folder: Path, countries: Path | None, elements: Path | None
) -> tuple[list[Fact], list[str]]:
    """All facts, and the words among them that come from WordNet."""
    candidates = wordnet.candidate_nouns(wordnet_folder)
    element_names = {name for _, name, _ in read_elements(elements)}
    nouns = wordnet.choose_nouns(candidates, left_out=element_names)
    opposites = wordnet.opposite_pairs(wordnet_folder)
    facts = [
        *geography.geography_facts(countries),
        *all_element_facts(elements),
        *(fact for noun in nouns for fact in wordnet.noun_facts(noun)),
        *(wordnet.opposite_fact(word, other) for word, other in opposites),
        *sum_facts(),
        *sequence_facts(),
        *table_facts(),
        *rhyme_facts(),
    ]
    taught_words = {noun.word for noun in nouns} | {word for word, _ in opposites}
    return facts, sorted(taught_words)


def build_corpus(
    wordnet_folder: Path = wordnet.DEFAULT_FOLDER, countries: Path | None = None, elements: Path | None = None
) -> Corpus:
    """The corpus, the same on every call; the paths replace the installed packages' data."""
    facts, taught_words = build_facts(wordnet_folder, countries, elements)
    known = set(known_questions(facts))
    taught = set(taught_words)
    words = [word for word in wordnet.frequent_words(wordnet_folder) if word not in taught]
    random.Random(HELD_OUT_SEED).shuffle(words)
    held_out_words, words = words[:HELD_OUT_WORDS], words[HELD_OUT_WORDS:]
    unknowns = unknown_texts(words, taught_words, known, UNKNOWN_COUNTS, UNKNOWN_SEED)
    trained = known | {text.question for text in unknowns}
    held_out = unknown_texts(held_out_words, taught_words, known, HELD_OUT_UNKNOWN_COUNTS, HELD_OUT_SEED)
    return Corpus(
        facts=facts,
        stories=story_texts(STORIES, STORY_SEED),
        unknowns=unknowns,
        held_out_unknowns=[text for text in held_out if text.question not in trained],
    )

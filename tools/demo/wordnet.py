"""Definitions, kinds and opposites from WordNet 3.0 (Debian's `wordnet-base`; its licence asks for a notice).

Words are taken by how often WordNet's own tagged texts use them, with some everyday words put first.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from pathlib import Path

from tools.demo.facts import Fact, capitalise, make_fact, with_article
from tools.demo.words import EVERYDAY_NOUNS, LEFT_OUT_NOUNS, MASS_NOUNS, UNWANTED_IN_GLOSS

DEFAULT_FOLDER = Path("/usr/share/wordnet")
DEFINED_WORDS = 500
OPPOSITES = 250
GLOSS_WORDS = range(4, 16)
# WordNet's lexicographer files, with the priority of their words.
NOUN_FILES = {
    5: 1.0,  # animal
    6: 1.0,  # artifact
    8: 1.0,  # body
    13: 1.0,  # food
    15: 0.3,  # location
    17: 1.0,  # natural object
    18: 0.5,  # person
    19: 0.6,  # phenomenon
    20: 1.0,  # plant
    27: 0.6,  # substance
}
PART_OF_SPEECH_NUMBERS = {"noun": "1", "verb": "2", "adj": "3", "adj_satellite": "5"}


@dataclasses.dataclass(frozen=True)
class Synset:
    """One meaning; a pointer is a symbol, the other meaning's offset, its part of speech, source/target."""

    lexicographer_file: int
    words: tuple[str, ...]
    pointers: tuple[tuple[str, str, str, str], ...]
    gloss: str


@dataclasses.dataclass(frozen=True)
class Noun:
    """A noun with a short definition, the word for its kind (if there is one) and its priority."""

    word: str
    definition: str
    kind: str | None
    score: float


def data_lines(path: Path) -> list[str]:
    """The lines of a WordNet file without its licence at the top, which is indented."""
    return [line for line in path.read_text(encoding="latin1").splitlines() if not line.startswith("  ")]


def read_synsets(folder: Path, part_of_speech: str) -> dict[str, Synset]:
    """Every meaning of one part of speech, by its offset."""
    synsets = {}
    for line in data_lines(folder / f"data.{part_of_speech}"):
        head, gloss = line.split(" | ", 1)
        fields = head.split()
        word_count = int(fields[3], 16)
        words = tuple(re.sub(r"\(.*\)", "", fields[4 + 2 * i]) for i in range(word_count))
        first = 5 + 2 * word_count
        count = int(fields[first - 1])
        groups = (fields[first + 4 * i : first + 4 * i + 4] for i in range(count))
        pointers = tuple((kind, offset, part, ends) for kind, offset, part, ends in groups)
        synsets[fields[0]] = Synset(int(fields[1]), words, pointers, gloss.strip())
    return synsets


def read_first_senses(folder: Path, part_of_speech: str) -> dict[str, str]:
    """The offset of each word's most frequent meaning."""
    senses = {}
    for line in data_lines(folder / f"index.{part_of_speech}"):
        fields = line.split()
        senses[fields[0]] = fields[-int(fields[2])]
    return senses


def read_counts(folder: Path) -> dict[tuple[str, str], int]:
    """How often a word occurs as a part of speech (WordNet's number for it)."""
    counts: dict[tuple[str, str], int] = collections.Counter()
    for line in data_lines(folder / "cntlist.rev"):
        key, _, count = line.split()
        word, sense = key.split("%")
        counts[word, sense[0]] += int(count)
    return counts


def short_definition(word: str, gloss: str) -> str | None:
    """The first clause of a gloss, or None where it is too short, too long, circular or unsuitable."""
    clause = re.sub(r"\([^)]*\)", "", gloss.split(";")[0])
    clause = re.sub(r"\s+", " ", clause).strip(" ,:")
    words = clause.split()
    plain = re.fullmatch(r"[A-Za-z0-9 ,'\-]+", clause)
    if (
        len(words) not in GLOSS_WORDS
        or not plain
        or word in words
        or UNWANTED_IN_GLOSS.search(f"{gloss} {word}")
    ):
        return None
    return clause


def candidate_nouns(folder: Path) -> list[Noun]:
    """All nouns that could be taught, by priority."""
    synsets, senses, counts = (
        read_synsets(folder, "noun"),
        read_first_senses(folder, "noun"),
        read_counts(folder),
    )
    nouns = []
    for (word, part), count in counts.items():
        if (
            part != PART_OF_SPEECH_NUMBERS["noun"]
            or not re.fullmatch(r"[a-z]{3,12}", word)
            or word not in senses
        ):
            continue
        synset = synsets[senses[word]]
        if (
            synset.lexicographer_file not in NOUN_FILES
            or word not in synset.words
            or synset.words[0][0].isupper()
        ):
            continue
        definition = short_definition(word, synset.gloss)
        if definition is None:
            continue
        hypernyms = [offset for symbol, offset, _, _ in synset.pointers if symbol == "@"]
        kind = synsets[hypernyms[0]].words[0].replace("_", " ") if hypernyms else None
        nouns.append(Noun(word, definition, kind, count * NOUN_FILES[synset.lexicographer_file]))
    return sorted(nouns, key=lambda noun: (-noun.score, noun.word))


def choose_nouns(candidates: list[Noun], left_out: set[str], count: int = DEFINED_WORDS) -> list[Noun]:
    """The nouns that are taught: everyday ones and those of the highest priority, in alphabetical order."""
    allowed = [noun for noun in candidates if noun.word not in LEFT_OUT_NOUNS and noun.word not in left_out]
    everyday = [noun for noun in allowed if noun.word in EVERYDAY_NOUNS]
    chosen = dict.fromkeys([*everyday, *allowed])
    return sorted(list(chosen)[:count], key=lambda noun: noun.word)


def noun_facts(noun: Noun) -> list[Fact]:
    """The definition, and the kind if that is short."""
    phrase = noun.word if noun.word in MASS_NOUNS else with_article(noun.word)
    facts = [
        make_fact(
            "define",
            noun.word,
            [
                f"What is {phrase}?",
                f"Define {noun.word}.",
                f"What does {noun.word} mean?",
                f"What does the word {noun.word} mean?",
                f"Give me a definition of {noun.word}.",
            ],
            f"{capitalise(noun.word)}: {noun.definition}.",
        )
    ]
    kind = noun.kind
    if kind and kind != noun.word and re.fullmatch("[a-z ]+", kind) and len(kind.split()) < 3:
        facts.append(
            make_fact(
                "kind",
                noun.word,
                [
                    f"What kind of thing is {phrase}?",
                    f"{capitalise(phrase)} is a kind of what?",
                    f"To what group does {phrase} belong?",
                ],
                f"{capitalise(phrase)} is a kind of {kind}.",
            )
        )
    return facts


def opposite_pairs(folder: Path, count: int = OPPOSITES) -> list[tuple[str, str]]:
    """Adjectives with their opposites, the most frequent first."""
    synsets, senses, counts = (
        read_synsets(folder, "adj"),
        read_first_senses(folder, "adj"),
        read_counts(folder),
    )
    pairs = []
    for word, offset in senses.items():
        synset = synsets[offset]
        if not re.fullmatch("[a-z]{2,12}", word) or word not in synset.words:
            continue
        position = synset.words.index(word) + 1
        for symbol, other_offset, _, source_target in synset.pointers:
            if symbol == "!" and int(source_target[:2], 16) == position:
                other = synsets[other_offset].words[int(source_target[2:], 16) - 1]
                head, satellite = PART_OF_SPEECH_NUMBERS["adj"], PART_OF_SPEECH_NUMBERS["adj_satellite"]
                score = min(counts[word, head], counts[other, head]) + counts[other, satellite]
                pairs.append((score, word, other))
                break
    pairs.sort(reverse=True)
    return [(word, other) for _, word, other in pairs[:count]]


def opposite_fact(word: str, other: str) -> Fact:
    """The opposite of one adjective."""
    questions = [
        f"What is the opposite of {word}?",
        f"Give me the opposite of {word}.",
        f"What word means the opposite of {word}?",
        f"Name the antonym of {word}.",
    ]
    return make_fact("opposite", word, questions, f"The opposite of {word} is {other}.")


def frequent_words(folder: Path) -> list[str]:
    """All words of WordNet's tagged texts, whatever they are, in alphabetical order."""
    return sorted({word for word, _ in read_counts(folder) if re.fullmatch(r"[a-z]{3,12}", word)})

"""Questions to decline: words that are not taught, names that do not exist, sums that are too large."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

from tools.demo.facts import Text, normalised, with_article
from tools.demo.sequences import LARGEST_FACTOR, LARGEST_SUMMAND, sum_questions
from tools.demo.words import words

DECLINES = (
    "I am a very small model, and I do not know that. "
    "Ask me about a country, an element, a word, a sum or a story."
)
WORD_QUESTIONS = (
    "What is {a_word}?",
    "What is {word}?",
    "Define {word}.",
    "What does {word} mean?",
    "What does the word {word} mean?",
    "Give me a definition of {word}.",
    "What kind of thing is {a_word}?",
    "{A_word} is a kind of what?",
    "To what group does {a_word} belong?",
)
OPPOSITE_QUESTIONS = (
    "What is the opposite of {word}?",
    "Give me the opposite of {word}.",
    "What word means the opposite of {word}?",
    "Name the antonym of {word}.",
)
COUNTRY_QUESTIONS = (
    "What is the capital of {name}?",
    "What is {name}'s capital city?",
    "Name the capital of {name}.",
    "Which city is the capital of {name}?",
    "Tell me the capital city of {name}.",
    "{name} is the capital of which country?",
    "Which country has {name} as its capital?",
    "Of which country is {name} the capital?",
    "Which continent is {name} in?",
    "Where is {name}?",
    "What is the currency of {name}?",
    "Which currency is used in {name}?",
    "What is {name}?",
    "Tell me about {name}.",
)
# Asked about a word that is taught, but not for this.
RELATION_QUESTIONS = (
    *OPPOSITE_QUESTIONS,
    "Define {word}.",
    "What does {word} mean?",
    "What does the word {word} mean?",
    "What is the capital of {word}?",
    "What is the currency of {word}?",
    "What is the chemical symbol for {word}?",
    "What is the atomic number of {word}?",
)
ELEMENT_QUESTIONS = (
    "What is the chemical symbol for {word}?",
    "What is the symbol of {word}?",
    "Give me the symbol for the element {word}.",
    "What is the atomic number of {word}?",
    "How many protons does {word} have?",
    "Tell me the atomic number of {word}.",
)
OTHER_QUESTIONS = (
    "How do I repair {}?",
    "Why is {} so expensive?",
    "Where can I buy {}?",
    "Write a program about {}.",
    "Write a poem about {}.",
    "Who invented {}?",
    "What is the price of {}?",
    "How do I make {} at home?",
    "What do you think of {}?",
    "Can you draw {}?",
    "Translate {} into French.",
    "How old is {}?",
    "What is the best {} in the world?",
    "Explain the history of {}.",
    "Should I sell my {}?",
    "What will {} be like in the future?",
    "How heavy is {}?",
    "Do you like {}?",
)
ONSETS = words("b c d f g h j k l m n p r s t v w z br dr fl gr kr pl sk st tr th qu")
VOWELS = words("a e i o u ai ea oo ia")
CODAS = ["", "", "", "n", "r", "s", "l", "m", "nd", "rk", "st", "x"]
LARGEST_UNKNOWN_NUMBER = 999


def invented_name(generator: random.Random) -> str:
    """A word of two or three syllables in lower case that (most likely) means nothing."""
    syllables = generator.choice((2, 2, 3))
    return "".join(
        generator.choice(ONSETS)
        + generator.choice(VOWELS)
        + (generator.choice(CODAS) if i == syllables - 1 else "")
        for i in range(syllables)
    )


def word_question(generator: random.Random, word: str) -> str:
    """A question for what a word means, or for its opposite."""
    templates = OPPOSITE_QUESTIONS if generator.random() < 0.25 else WORD_QUESTIONS
    a_word = with_article(word)
    return generator.choice(templates).format(word=word, a_word=a_word, A_word=a_word.capitalize())


def name_question(generator: random.Random, word: str) -> str:
    """A question about a country, a capital or an element of that name, or for its meaning."""
    choice = generator.random()
    if choice < 0.5:
        return generator.choice(COUNTRY_QUESTIONS).format(name=word.capitalize())
    if choice < 0.7:
        return generator.choice(ELEMENT_QUESTIONS).format(word=word)
    return word_question(generator, word)


def sum_question(generator: random.Random) -> str:
    """A sum with at least one number beyond those that are taught."""
    kind = generator.choice(("add", "subtract", "multiply"))
    largest_known = LARGEST_FACTOR if kind == "multiply" else LARGEST_SUMMAND
    large = generator.choice(
        (generator.randint(largest_known + 1, 99), generator.randint(100, LARGEST_UNKNOWN_NUMBER))
    )
    other = generator.randint(0, large)
    a, b = (large, other) if kind == "subtract" or generator.random() < 0.5 else (other, large)
    return generator.choice(sum_questions(kind, a, b))


def declined(category: str, questions: Sequence[str], known: Collection[str]) -> list[Text]:
    """The questions with the answer that declines them, without those that a fact answers."""
    return [Text(category, question, DECLINES) for question in questions if normalised(question) not in known]


def unknown_texts(
    untaught_words: Sequence[str],
    taught_words: Sequence[str],
    known: Collection[str],
    counts: dict[str, int],
    seed: int,
) -> list[Text]:
    """Questions that must be declined, by category as many as `counts` says (less those that a fact answers).

    `untaught_words` are real words, `taught_words` those that have a fact, but not about everything
    ("What is the opposite of a piano?"); `known` are the normalised questions that facts answer.
    """
    generator = random.Random(seed)

    def question(category: str) -> str:
        word = generator.choice(untaught_words)
        if category == "unknown_word":
            return word_question(generator, word)
        if category == "unknown_name":
            return name_question(generator, invented_name(generator))
        if category == "unknown_sum":
            return sum_question(generator)
        if category == "unknown_relation":
            return generator.choice(RELATION_QUESTIONS).format(word=generator.choice(taught_words))
        thing = generator.choice((with_article(word), word, f"the {word}"))
        return generator.choice(OTHER_QUESTIONS).format(thing)

    texts = []
    for category, count in counts.items():
        texts += declined(category, [question(category) for _ in range(count)], known)
    return texts

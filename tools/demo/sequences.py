"""Sums, and the neighbours of days, months and letters."""

from __future__ import annotations

from tools.demo.facts import Fact, make_fact

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
MONTH_LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LARGEST_SUMMAND = 20
LARGEST_FACTOR = 12


def sum_questions(kind: str, a: int, b: int) -> list[str]:
    """Questions for "add", "subtract" or "multiply"."""
    return {
        "add": [
            f"What is {a} plus {b}?",
            f"What is {a} + {b}?",
            f"Add {a} and {b}.",
            f"How much is {a} plus {b}?",
            f"What is the sum of {a} and {b}?",
        ],
        "subtract": [
            f"What is {a} minus {b}?",
            f"What is {a} - {b}?",
            f"Subtract {b} from {a}.",
            f"How much is {a} minus {b}?",
            f"Take {b} away from {a}.",
        ],
        "multiply": [
            f"What is {a} times {b}?",
            f"What is {a} x {b}?",
            f"Multiply {a} by {b}.",
            f"How much is {a} times {b}?",
            f"What is the product of {a} and {b}?",
        ],
    }[kind]


def sum_facts() -> list[Fact]:
    """Addition and subtraction up to 20, multiplication up to 12."""
    facts = []
    for a in range(LARGEST_SUMMAND + 1):
        for b in range(LARGEST_SUMMAND + 1):
            answer = f"{a} plus {b} is {a + b}."
            facts.append(make_fact("add", f"{a}+{b}", sum_questions("add", a, b), answer))
            if b <= a:
                answer = f"{a} minus {b} is {a - b}."
                facts.append(make_fact("subtract", f"{a}-{b}", sum_questions("subtract", a, b), answer))
    for a in range(LARGEST_FACTOR + 1):
        for b in range(LARGEST_FACTOR + 1):
            questions = sum_questions("multiply", a, b)
            facts.append(make_fact("multiply", f"{a}*{b}", questions, f"{a} times {b} is {a * b}."))
    return facts


def neighbour_facts(unit: str, item: str, before: str | None, after: str | None) -> list[Fact]:
    """The neighbours of one item in a sequence of days, months or letters."""
    article = "The letter " if unit == "letter" else ""
    facts = []
    if after:
        questions = [
            f"What {unit} comes after {item}?",
            f"Which {unit} follows {item}?",
            f"What is the {unit} after {item}?",
            f"Name the {unit} after {item}.",
            f"Which {unit} comes right after {item}?",
        ]
        facts.append(make_fact("sequence", f"{item}>", questions, f"{article}{after} comes after {item}."))
    if before:
        questions = [
            f"What {unit} comes before {item}?",
            f"Which {unit} is before {item}?",
            f"What is the {unit} before {item}?",
            f"Name the {unit} before {item}.",
            f"Which {unit} comes right before {item}?",
        ]
        facts.append(make_fact("sequence", f"<{item}", questions, f"{article}{before} comes before {item}."))
    return facts


def month_length_fact(month: str, length: int) -> Fact:
    """How many days a month has."""
    answer = f"{month} has {length} days."
    if month == "February":
        answer = "February has 28 days, or 29 in a leap year."
    questions = [
        f"How many days are in {month}?",
        f"How many days does {month} have?",
        f"How long is {month}?",
        f"Tell me how many days {month} has.",
    ]
    return make_fact("sequence", f"length of {month}", questions, answer)


def sequence_facts() -> list[Fact]:
    """Neighbours of every day, month and letter, and the lengths of the months."""
    facts = []
    for unit, items in (("day", DAYS), ("month", MONTHS)):
        for i, item in enumerate(items):
            facts += neighbour_facts(unit, item, items[i - 1], items[(i + 1) % len(items)])
    for i, letter in enumerate(ALPHABET):
        facts += neighbour_facts("letter", letter, ALPHABET[i - 1 : i], ALPHABET[i + 1 : i + 2])
    facts += [month_length_fact(month, length) for month, length in zip(MONTHS, MONTH_LENGTHS, strict=True)]
    return facts

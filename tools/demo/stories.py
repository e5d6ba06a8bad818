"""Short stories from a small grammar of this project's own."""

from __future__ import annotations

import random

from tools.demo.facts import Text, capitalise, with_article
from tools.demo.words import words

ADJECTIVES = words("little brave clever kind lazy shy hungry happy old young gentle curious proud quiet")
ANIMALS = words(
    "fox bear rabbit mouse owl frog cat dog duck wolf horse goat hen pig lion turtle squirrel hedgehog deer",
    "otter",
)
NAMES = words("Tom Anna Ben Lily Sam Rosa Max Mia Leo Nora Jack Ella Finn Ruby Oscar Ivy")
PLACES = (
    "in a green forest",
    "by a quiet river",
    "on a small farm",
    "near a tall mountain",
    "beside a blue lake",
    "in an old barn",
    "under a great oak",
    "at the edge of a village",
)
OBJECTS = (
    *("a red ball", "a golden key", "a warm hat", "a shiny coin"),
    *("a sweet apple", "a small lantern", "a silver bell", "a blue kite"),
)
TIMES = (
    *("One morning", "One day", "One cold night"),
    *("One sunny day", "After a long winter", "Late in the evening"),
)
PLOTS = (
    (
        "{time}, {name} lost {thing}.",
        "{name} looked everywhere, but could not find it.",
        'Then {friend} named {friend_name} came by and said, "I will help you."',
        "Together they looked all day, and {friend_name} found the {bare_thing} under a leaf.",
        "{name} thanked {friend_name}, and the two became good friends.",
    ),
    (
        "{time}, {name} found {thing} on the path.",
        "It belonged to {friend} named {friend_name}.",
        "{name} wanted to keep the {bare_thing}, but knew that it was wrong.",
        "So {name} gave it back, and {friend_name} was very glad.",
        "From that day on they shared everything.",
    ),
    (
        "{time}, a great storm came, and {name} was afraid.",
        '{Friend} named {friend_name} opened the door and said, "Come in and stay with me."',
        "They sat by the fire and told stories until the rain stopped.",
        "In the morning {name} gave {friend_name} {thing} to say thank you.",
    ),
    (
        "{time}, {name} met {friend} named {friend_name}.",
        '"I can run faster than you," said {friend_name}.',
        "They ran to the hill and back, and {friend_name} fell into a hole.",
        "{name} stopped to help, and they finished the race side by side.",
        "{friend_name} gave {name} {thing} and never boasted again.",
    ),
)
QUESTIONS_ABOUT = (
    "Tell me a story about {}.",
    "Write a short story about {}.",
    "Tell me a tale about {}.",
    "Can you tell me a story about {}?",
)
QUESTIONS = ("Tell me a story.", "Write a story.", "Please tell me a short story.", "Once upon a time")
WITHOUT_QUESTION_SHARE = 0.25
WITHOUT_ANIMAL_SHARE = 0.2


def write_story(generator: random.Random) -> tuple[str, str]:
    """The animal that a story is about, and the story."""
    animal, friend_animal = generator.sample(ANIMALS, 2)
    name, friend_name = generator.sample(NAMES, 2)
    adjective, friend_adjective = generator.sample(ADJECTIVES, 2)
    thing = generator.choice(OBJECTS)
    friend = with_article(f"{friend_adjective} {friend_animal}")
    words = {
        "name": name,
        "friend_name": friend_name,
        "friend": friend,
        "Friend": capitalise(friend),
        "thing": thing,
        "bare_thing": thing.split(" ", 1)[1],
        "time": generator.choice(TIMES),
    }
    hero = with_article(f"{adjective} {animal}")
    first = f"Once upon a time, {hero} named {name} lived {generator.choice(PLACES)}."
    rest = (sentence.format(**words) for sentence in generator.choice(PLOTS))
    return animal, " ".join([first, *rest])


def story_texts(count: int, seed: int) -> list[Text]:
    """Stories requested by animal, stories requested without one, and stories without a request."""
    generator = random.Random(seed)
    texts = []
    for _ in range(count):
        animal, story = write_story(generator)
        choice = generator.random()
        if choice < WITHOUT_QUESTION_SHARE:
            texts.append(Text("story", None, story))
        elif choice < WITHOUT_QUESTION_SHARE + WITHOUT_ANIMAL_SHARE:
            texts.append(Text("story", generator.choice(QUESTIONS), story))
        else:
            question = generator.choice(QUESTIONS_ABOUT).format(with_article(animal))
            texts.append(Text("story", question, story))
    return texts

"""Word lists that WordNet does not have: nouns without a plural, everyday words, words to omit."""

from __future__ import annotations

import re


def words(*lines: str) -> list[str]:
    """The words of a text."""
    return " ".join(lines).split()


EVERYDAY_NOUNS = frozenset(
    words(
        """
        airplane apple baker bakery banana bear bicycle boat bread bridge butter camel castle cat cheese
        cherry clock cow desert diamond doctor dog drum duck eagle egg elephant farmer fish flute forest
        fork fox frog giraffe goat goose grape guitar hammer hen horse island king knife lemon lion monkey
        mountain mouse oak owl painter pear pearl piano pig poet queen rabbit river rose sailor saw shark
        sheep snake soldier spoon teacher tiger toad train trumpet tulip violin volcano wolf zebra
        """
    )
)

MASS_NOUNS = frozenset(
    words(
        """
        air ammunition art artillery barley beef beer blood brass bread butter canvas cheese clay cloth
        clothing coal coffee concrete corn cotton cream dirt dust effluent electricity energy equipment feed
        fiber flesh fog foliage food footwear fuel fur furniture gasoline glass grass gravel ground hair hay
        heat honey housing ice ink jewelry juice lace land lava leather light linen liquor livestock lumber
        machinery meat milk mist mold mud mustard oil paint paper pork pottery powder pressure radiation
        rain rice salt sand sewage silk slate smoke snow soap soil space steel straw stuff sugar tea thunder
        timber tobacco traffic turf velvet vinegar vodka water watercolor weaponry weather wheat whiskey
        whisky wind wine wood wool
        """
    )
)

# Names for people, inflected forms, and words whose most frequent meaning is not the expected one.
LEFT_OUT_NOUNS = frozenset(
    words(
        """
        active aerator andrena bastard beef bitch bronchiole bronchus buckskin bunk catkin cop dice end
        etcetera fellow female formulation fraction giant guy headquarters livestock male manifold master
        mound papa pegboard petitioner pill quack quirt round saline side sir site strain stretch tiger
        whale works
        """
    )
)

UNWANTED_IN_GLOSS = re.compile(r"\b(sex\w*|slave\w*|prostitut\w*|genital\w*|breast\w*|racial|slur)\b")

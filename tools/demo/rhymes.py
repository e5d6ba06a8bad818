"""Nursery rhymes in the public domain."""

from __future__ import annotations

from tools.demo.facts import Fact, make_fact

RHYMES = {
    "Twinkle, Twinkle, Little Star": (
        "Twinkle, twinkle, little star,\nHow I wonder what you are!\n"
        "Up above the world so high,\nLike a diamond in the sky."
    ),
    "Mary Had a Little Lamb": (
        "Mary had a little lamb,\nIts fleece was white as snow;\n"
        "And everywhere that Mary went\nThe lamb was sure to go."
    ),
    "Humpty Dumpty": (
        "Humpty Dumpty sat on a wall,\nHumpty Dumpty had a great fall;\n"
        "All the king's horses and all the king's men\nCouldn't put Humpty together again."
    ),
    "Jack and Jill": (
        "Jack and Jill went up the hill\nTo fetch a pail of water;\n"
        "Jack fell down and broke his crown,\nAnd Jill came tumbling after."
    ),
    "Baa, Baa, Black Sheep": (
        "Baa, baa, black sheep, have you any wool?\nYes, sir, yes, sir, three bags full;\n"
        "One for the master, and one for the dame,\nAnd one for the little boy who lives down the lane."
    ),
    "Hey Diddle Diddle": (
        "Hey diddle diddle, the cat and the fiddle,\nThe cow jumped over the moon;\n"
        "The little dog laughed to see such sport,\nAnd the dish ran away with the spoon."
    ),
    "Little Miss Muffet": (
        "Little Miss Muffet sat on a tuffet,\nEating her curds and whey;\n"
        "There came a big spider, who sat down beside her,\nAnd frightened Miss Muffet away."
    ),
    "Hickory Dickory Dock": (
        "Hickory dickory dock,\nThe mouse ran up the clock;\n"
        "The clock struck one, the mouse ran down,\nHickory dickory dock."
    ),
    "Row, Row, Row Your Boat": (
        "Row, row, row your boat\nGently down the stream;\n"
        "Merrily, merrily, merrily, merrily,\nLife is but a dream."
    ),
    "Old King Cole": (
        "Old King Cole was a merry old soul,\nAnd a merry old soul was he;\n"
        "He called for his pipe, and he called for his bowl,\nAnd he called for his fiddlers three."
    ),
}


def rhyme_facts() -> list[Fact]:
    """Each rhyme by its title."""
    return [
        make_fact(
            "rhyme",
            title,
            [
                f"Recite {title}.",
                f"Say the rhyme {title}.",
                f"Tell me the nursery rhyme {title}.",
                f"How does {title} go?",
            ],
            rhyme,
        )
        for title, rhyme in RHYMES.items()
    ]

"""The requests of a load: prompts of mixed lengths, and when they are sent. The same seed, the same load."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CLOSED, OPEN, QUIET, LONG = "closed loop", "open loop", "no long prompt", "long prompt"
DECODING, READING = "decoding", "reading"  # names of requests beside a long prompt
REQUESTS_EACH = 400  # of a client in a closed loop: more than are answered while it is measured
_WORD = re.compile(r"▁[a-z]{3,}")
Request = dict[str, Any]


@dataclass(frozen=True)
class Span:
    """Seconds after the start: the window that is measured, and when connections are closed at the latest."""

    begin: float
    end: float
    limit: float

    @property
    def seconds(self) -> float:
        return self.end - self.begin


@dataclass(frozen=True)
class Prompts:
    """Draws prompts of words that are one token each; none begins as another, so no server's cache helps."""

    words: Sequence[str]

    @classmethod
    def of_pieces(cls, pieces: Sequence[str]) -> Prompts:
        """Of the pieces of a vocabulary that begin a word, the shorter half: every tokenizer keeps these."""
        found = sorted((piece[1:] for piece in pieces if _WORD.fullmatch(piece)), key=len)
        words = [word for word in found if not word.startswith("piece")]
        if not words:
            raise ValueError("the tokenizer has no piece that is a whole word in lower case")
        return cls(words[: max(1, len(words) // 2)])

    def draw(self, tokens: int, numbers: random.Random) -> str:
        return " ".join(numbers.choices(self.words, k=tokens))


@dataclass(frozen=True)
class Shape:
    """The sizes of requests: a prompt's tokens lie between two numbers, evenly on a logarithmic scale."""

    shortest: int
    longest: int
    max_tokens: int

    def prompt_tokens(self, numbers: random.Random) -> int:
        low, high = math.log(self.shortest), math.log(self.longest + 1)
        return min(self.longest, int(math.exp(numbers.uniform(low, high))))


def body_of(prompt: str, max_tokens: int, extra: Mapping[str, Any]) -> Request:
    """A streamed completion of the likeliest tokens, with what a server needs besides."""
    return {
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **extra,
    }


@dataclass(frozen=True)
class Maker:
    """Makes the requests of loads for one server. ``extra`` goes into every body."""

    prompts: Prompts
    shape: Shape
    seed: int
    extra: Mapping[str, Any]

    def request(self, name: str, numbers: random.Random, at: float = 0.0) -> Request:
        prompt = self.prompts.draw(self.shape.prompt_tokens(numbers), numbers)
        return {"name": name, "at": at, "body": body_of(prompt, self.shape.max_tokens, self.extra)}

    def warm_up(self, count: int) -> list[Request]:
        numbers = random.Random(f"{self.seed} warm-up")
        return [self.request("warm-up", numbers)["body"] for _ in range(count)]

    def closed(self, clients: int, lead: float) -> list[list[Request]]:
        """Each client has more requests than it can send, and sends one when the last is answered.

        They begin one after the other within ``lead`` seconds: their answers are of equal lengths, and would
        else all end at once again and again.
        """
        every = [random.Random(f"{self.seed} {CLOSED} {client}") for client in range(clients)]
        return [
            [self.request(CLOSED, numbers, lead * at / clients) for _ in range(REQUESTS_EACH)]
            for at, numbers in enumerate(every)
        ]

    def open(self, rate: float, end: float) -> list[list[Request]]:
        """Requests that arrive at ``rate`` a second, whether or not the others are answered."""
        numbers = random.Random(f"{self.seed} {OPEN}")
        return [[self.request(OPEN, numbers, at)] for at in arrivals(rate, end, numbers)]

    def long(
        self, clients: int, prompt_tokens: int, span: Span, every: float, decode_tokens: int
    ) -> list[list[Request]]:
        """All clients but one decode; the last sends a prompt of ``prompt_tokens`` every so many seconds.

        With ``prompt_tokens`` 0 it sends none, and the others do the same.
        """
        numbers = random.Random(f"{self.seed} {LONG}")
        decoding = Maker(self.prompts, Shape(16, 16, decode_tokens), self.seed, self.extra)
        others = [
            [decoding.request(DECODING, numbers) for _ in range(REQUESTS_EACH)] for _ in range(clients - 1)
        ]
        if not prompt_tokens:
            return others
        reading = Maker(self.prompts, Shape(prompt_tokens, prompt_tokens, 1), self.seed, self.extra)
        count = max(1, int(span.seconds / every))
        return [
            *others,
            [reading.request(READING, numbers, span.begin + (at + 0.5) * every) for at in range(count)],
        ]


def arrivals(rate: float, end: float, numbers: random.Random) -> list[float]:
    """Times before ``end`` of a Poisson process: the gaps are exponential, with a mean of 1/rate."""
    times = [numbers.expovariate(rate)]
    while times[-1] < end:
        times.append(times[-1] + numbers.expovariate(rate))
    return times[:-1]

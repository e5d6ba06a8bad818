"""Traces: the requests of a load, drawn from a seed or read from a file of lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.simulate.arrivals import Arrivals
from benchmarks.simulate.lengths import Lengths
from benchmarks.simulate.request import Clients, Request

FIELDS = ("prompt_tokens", "answer_tokens", "at", "think", "conversation", "shared")


@dataclass(frozen=True)
class Conversations:
    """What people who chat send.

    Args:
        prompts: new tokens of each turn.
        answers: tokens of each answer.
        turns: of a conversation; each prompt begins with all that was said before.
        think: seconds from an answer's last token to the next turn, exponential with this mean.
        shared: tokens at the beginning that all conversations have.
        context: a conversation ends before a prompt and its answer have more tokens.
    """

    prompts: Lengths
    answers: Lengths
    turns: int = 1
    think: float = 0.0
    shared: int = 0
    context: int = 1 << 30

    def __post_init__(self) -> None:
        if self.shared + self.prompts.high + self.answers.high > self.context:
            raise ValueError(
                f"a prompt and its answer may have {self.shared + self.prompts.high + self.answers.high} "
                f"tokens; expected at most {self.context}, the context"
            )

    def open_loop(self, arrivals: Arrivals, seconds: float, seed: int) -> Clients:
        """A conversation begins at each arrival."""
        numbers = np.random.default_rng(seed)
        times = arrivals.draw(seconds, numbers)
        drawn = self._drawn(len(times), numbers)
        return [
            self._conversation(which, next(drawn), time, 0.0, numbers) for which, time in enumerate(times)
        ]

    def closed_loop(self, clients: int, conversations: int, lead: float, seed: int) -> Clients:
        """Clients that begin one after the other within ``lead`` seconds and then pause only to think."""
        numbers = np.random.default_rng(seed)
        drawn = self._drawn(clients * conversations, numbers)
        found = []
        for client in range(clients):
            requests: list[Request] = []
            for each in range(conversations):
                which, think = client * conversations + each, self.think if requests else 0.0
                at = lead * client / clients
                requests += self._conversation(which, next(drawn), at, think, numbers)
            found.append(requests)
        return found

    def _drawn(self, count: int, numbers: np.random.Generator) -> Iterator[list[tuple[int, int]]]:
        """The lengths of each conversation's turns, drawn at once."""
        prompts = self.prompts.draw(count * self.turns, numbers)
        answers = self.answers.draw(count * self.turns, numbers)
        pairs = list(zip(prompts, answers, strict=True))
        return iter([pairs[at * self.turns : (at + 1) * self.turns] for at in range(count)])

    def _conversation(
        self,
        which: int,
        lengths: list[tuple[int, int]],
        at: float,
        think: float,
        numbers: np.random.Generator,
    ) -> list[Request]:
        requests, said = [], self.shared
        for turn, (prompt, answer) in enumerate(lengths):
            if said + prompt + answer > self.context:
                break
            mean = self.think if turn else think
            pause = float(numbers.exponential(mean)) if mean else 0.0
            requests.append(Request(said + prompt, answer, at, pause, which, self.shared))
            said += prompt + answer
        return requests


def write_trace(clients: Clients, path: Path) -> None:
    """A line of JSON for each request: its client, and its fields."""
    with path.open("w", encoding="utf-8") as file:
        for client, requests in enumerate(clients):
            for request in requests:
                line = {"client": client} | {name: getattr(request, name) for name in FIELDS}
                file.write(json.dumps(line) + "\n")


def read_trace(path: Path) -> Clients:
    """The clients in the order in which they are first named. A line without a client has one of its own.

    Raises ValueError, which names the line.
    """
    named: dict[object, list[Request]] = {}
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            if not isinstance(line, dict):
                raise ValueError(f"it is a {type(line).__name__}; expected an object")
            client = line.pop("client", ("line", number))
            unknown = [name for name in line if name not in FIELDS]
            if unknown:
                raise ValueError(f"{unknown[0]} is unknown; expected {', '.join(FIELDS)} or client")
            line.setdefault("conversation", -number)
            named.setdefault(client, []).append(Request(**line))
        except (ValueError, TypeError) as error:
            raise ValueError(f"line {number} of {path.name}: {error}") from error
    if not named:
        raise ValueError(f"{path.name} has no request")
    return list(named.values())

"""A request of a simulated load, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["answered", "rejected", "failed"]


@dataclass
class Request:
    """A prompt and an answer of known lengths. Times are seconds since the start of the load.

    Args:
        at: it is sent at this time or later.
        think: and so many seconds or more after the last answer of its client.
        conversation: requests of one conversation begin alike: the shorter prompt, and its answer, begin the
            longer one.
        shared: tokens at the beginning that all prompts of the load have, such as a system prompt.

    Attributes:
        sent, first, ended: when it was sent, and when its first token and its last came; NaN if they did not.
        outcome: None until it has ended.
        attempts: times that it was sent to a replica.
        replica: the last of these.
        cached: tokens of the prompt that the replica did not read, as a slot held them.
        first_step: the step of the replica that gave the first token; each further one gave one more.
    """

    prompt_tokens: int
    answer_tokens: int
    at: float = 0.0
    think: float = 0.0
    conversation: int = -1
    shared: int = 0
    sent: float = field(default=float("nan"), repr=False)
    first: float = field(default=float("nan"), repr=False)
    ended: float = field(default=float("nan"), repr=False)
    outcome: Outcome | None = field(default=None, repr=False)
    attempts: int = field(default=0, repr=False)
    replica: int = field(default=-1, repr=False)
    cached: int = field(default=0, repr=False)
    first_step: int = field(default=-1, repr=False)

    def __post_init__(self) -> None:
        for name, least in (("prompt_tokens", 1), ("answer_tokens", 1), ("shared", 0)):
            value = getattr(self, name)
            if not isinstance(value, int):
                raise ValueError(f"{name} is {value!r}; expected an integer")
            if value < least:
                raise ValueError(f"{name} is {value}; expected at least {least}")
        if self.shared > self.prompt_tokens:
            raise ValueError(f"shared is {self.shared}; expected at most prompt_tokens, {self.prompt_tokens}")
        for name in ("at", "think"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value!r}; expected seconds, 0 or more")


# Of each client the requests that it sends, one after the other.
Clients = list[list[Request]]

"""AnswerSeconds: how long the latest answers took, for clients that have to come again."""

from __future__ import annotations

from adept_fast.server.answering import Load

_WEIGHT_OF_THE_LATEST = 0.1  # answer, in the mean


class AnswerSeconds:
    """The mean of the latest answers' seconds, from their submission to their end."""

    def __init__(self) -> None:
        self._mean = 1.0

    def add(self, seconds: float) -> None:
        """An answer has ended."""
        self._mean += (seconds - self._mean) * _WEIGHT_OF_THE_LATEST

    def until_room(self, load: Load) -> float:
        """How long a queue takes to shorten by one, in seconds."""
        return self._mean / (load.slots + load.waiting)

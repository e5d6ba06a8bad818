"""StopMatcher: ends a stream of text at the first stop string, also one that spans several pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Passes text on until a stop string is complete; the string itself is held back.

    Text that may be the beginning of a stop string is held back until the next ``push`` or ``finish``. The
    stop string that is complete first ends the text; of several that end at one character, the one that
    starts first.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest_prefix = max((len(stop) for stop in self._stops), default=1) - 1
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that is known not to belong to a stop string; nothing once ``stopped``."""
        if self.stopped:
            return ""
        text = self._held + text
        ends = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)[1]]
        held = self._length_held(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """The text held back, which is no stop string."""
        held, self._held = self._held, ""
        return held

    def _length_held(self, text: str) -> int:
        for length in range(min(self._longest_prefix, len(text)), 0, -1):
            tail = text[-length:]
            if any(len(stop) > length and stop.startswith(tail) for stop in self._stops):
                return length
        return 0

"""Replay: leaves out of a repeated answer what is known of it already."""

from __future__ import annotations

from adept_fast.engine.sequence import GenerationEvent, TokenLogprob


class ReplayError(RuntimeError):
    """A replica gave an answer that differs from another one's."""


class Replay:
    """The tokens and the text of an answer so far, which may begin again from its first token.

    Events need not be cut as they were the first time.
    """

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.text = ""
        self.logprobs: list[TokenLogprob] = []
        self._repeated_tokens = self._repeated_characters = 0  # since the last restart

    def restart(self) -> None:
        """The next event is again the first one of the answer."""
        self._repeated_tokens = self._repeated_characters = 0

    def news(self, event: GenerationEvent) -> GenerationEvent | None:
        """What an event adds to the answer; None for nothing. Raises ReplayError if it contradicts it."""
        tokens = self._repeated_tokens
        old = self.token_ids[tokens : tokens + len(event.token_ids)]
        start = self._repeated_characters
        old_text = self.text[start : start + len(event.text)]
        if list(event.token_ids[: len(old)]) != old or not event.text.startswith(old_text):
            raise ReplayError("two replicas gave different answers; expected machines of one kind")
        self._repeated_tokens += len(event.token_ids)
        self._repeated_characters += len(event.text)
        token_ids, text = event.token_ids[len(old) :], event.text[len(old_text) :]
        logprobs = None if event.logprobs is None else event.logprobs[len(old) :]
        self.token_ids += token_ids
        self.text += text
        self.logprobs += logprobs or ()
        if not token_ids and not text and event.finish_reason is None:
            return None
        return GenerationEvent(token_ids, text, logprobs, event.finish_reason)

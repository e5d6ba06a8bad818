"""Acceleration: what an accelerated model has of the runtime."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from adept_fast.engine.turn import NestedRunError, Turns
from adept_fast.integrations.transformers.not_served import NotServedError
from adept_fast.integrations.transformers.shared_weights import SharedWeights, check_modules
from adept_fast.integrations.transformers.token_loop import TokenLoop


class Acceleration:
    """The shared weights of a model, and a loop over them; both made when they are first needed.

    A copy, or what a pickle holds, has the settings and no more.

    Args:
        rows, length: what the cache is made for, where a call does not need more.
    """

    def __init__(self, rows: int, length: int) -> None:
        self._rows = rows
        self._length = length
        self._shared: SharedWeights | None = None
        self._loop: TokenLoop | None = None
        self._turns = Turns()
        self._said: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return Acceleration, (self._rows, self._length)

    def __deepcopy__(self, memo: dict[int, Any]) -> Acceleration:
        return Acceleration(self._rows, self._length)

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Wait for runs of other threads, and have them wait; inside a run of the same thread, go ahead."""
        with ExitStack() as held:
            with suppress(NestedRunError):
                held.enter_context(self._turns.hold())
            yield

    def share(self, model: Any) -> SharedWeights:
        """The model's weights as they are now. Raises NotServedError where the runtime does not take them."""
        check_modules(model)
        if self._shared is None or not self._shared.are_of(model):
            self.release()
            self._shared = SharedWeights(model)
        self._shared.refresh()
        return self._shared

    def release(self) -> None:
        """Let go of weights and cache, before the model moves its parameters. A run goes on with those."""
        self._shared = self._loop = None

    @contextmanager
    def loop(self, model: Any, rows: int, length: int) -> Iterator[TokenLoop]:
        """A loop for so many rows of so many tokens, and for nobody else meanwhile: other threads wait.

        Raises NotServedError where the model is not served, or its ``generate`` is called while it runs.
        """
        with ExitStack() as held:
            try:
                held.enter_context(self._turns.hold())
            except NestedRunError as error:
                raise NotServedError("a generate within a generate") from error
            shared = self.share(model)
            loop = self._loop
            if loop is None or rows > loop.rows or length > loop.length:
                self._loop = loop = None  # before its successor takes memory
                loop = TokenLoop(
                    shared.config,
                    shared.weights,
                    shared.cache_dtype,
                    rows=max(rows, self._rows),
                    length=max(length, self._length),
                )
                self._loop = loop
            yield loop

    def say_once(self, what: str) -> None:
        """Warn that a call runs on transformers' own code, and why."""
        if what not in self._said:
            self._said.add(what)
            message = f"transformers' own generate runs, as the runtime does not do {what}"
            warnings.warn(message, UserWarning, stacklevel=4)

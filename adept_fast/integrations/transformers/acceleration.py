"""Acceleration: the runtime of an accelerated model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from adept_fast.engine.turn import NestedRunError, Turns
from adept_fast.integrations.transformers.not_served import NotServedError
from adept_fast.integrations.transformers.served_modules import check_modules
from adept_fast.integrations.transformers.shared_weights import SharedWeights
from adept_fast.integrations.transformers.token_loop import TokenLoop


class Acceleration:
    """The shared weights of a model and a loop over them, both created at first use.

    Copies and pickles have only the settings.

    Args:
        rows, length: the minimal size of the cache.
    """

    def __init__(self, rows: int = 1, length: int = 1) -> None:
        self._rows = rows
        self._length = length
        self._shared: SharedWeights | None = None
        self._loop: TokenLoop | None = None
        self._turns = Turns()
        self._warned: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return Acceleration, (self._rows, self._length)

    def __deepcopy__(self, memo: dict[int, Any]) -> Acceleration:
        return Acceleration(self._rows, self._length)

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Exclude runs of other threads; within a run of the same thread, continue without waiting."""
        with ExitStack() as held:
            with suppress(NestedRunError):
                held.enter_context(self._turns.hold())
            yield

    def share(self, model: Any) -> SharedWeights:
        """The current weights of the model. Raises NotServedError if the runtime does not support them."""
        check_modules(model)
        if self._shared is None or not self._shared.are_of(model):
            self.release()
            self._shared = SharedWeights(model)
        self._shared.refresh()
        return self._shared

    def release(self) -> None:
        """Drop weights and cache before the model moves its parameters. A current run keeps its own."""
        self._shared = self._loop = None

    @contextmanager
    def loop(self, model: Any, rows: int, length: int) -> Iterator[TokenLoop]:
        """A loop for ``rows`` of up to ``length`` tokens. Other threads wait until the caller is done.

        Raises NotServedError if the model is not supported, or for a ``generate`` within a ``generate``.
        """
        with ExitStack() as held:
            try:
                held.enter_context(self._turns.hold())
            except NestedRunError as error:
                raise NotServedError("a generate within a generate") from error
            shared = self.share(model)
            loop = self._loop
            if loop is None or rows > loop.rows or length > loop.length:
                self._loop = loop = None  # frees its memory before the next one allocates
                loop = TokenLoop(
                    shared.config,
                    shared.weights,
                    shared.cache_dtype,
                    rows=max(rows, self._rows),
                    length=max(length, self._length),
                )
                self._loop = loop
            yield loop

    def warn_once(self, reason: str) -> None:
        """Warn, once for each reason, that a call runs on transformers' own code."""
        if reason not in self._warned:
            self._warned.add(reason)
            message = f"transformers' own generate runs, as the runtime does not do {reason}"
            warnings.warn(message, UserWarning, stacklevel=4)

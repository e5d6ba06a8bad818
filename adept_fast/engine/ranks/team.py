"""Team: the first rank's hold on the others: starts them, tells them what to do, ends them."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from adept_fast.engine.ranks.connection import Connection, ConnectionEndedError
from adept_fast.engine.ranks.meeting import COMMANDS, LIFE, Meeting
from adept_fast.engine.ranks.processes import announce, launched, start_children
from adept_fast.engine.ranks.watch import STEP_SECONDS, Peer, RankError, Watch, late


class Team:
    """``count`` ranks, of which this process is the first.

    One that fails ends all others; the error of ``check`` names it.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._process_id = os.getpid()
        self._meeting = Meeting(count)
        self._commands: list[Connection] = []
        self._is_ready = False  # all have loaded their parts
        self.on_close: list[Callable[[], None]] = []  # called once the other ranks have ended
        self.memory, self.store = self._meeting.memory, self._meeting.store
        directory = self._meeting.directory
        if launched():
            announce(directory)
            self.watch = Watch(dict)
        else:
            self.watch = Watch(lambda: start_children(directory, count))

    def gather(self, settings: dict[str, Any]) -> None:
        """Wait until all ranks have come, and tell each how to load its part. Raises RankError."""
        connections = self._meeting.accept(self.watch.check)
        others = range(1, self.count)
        self.watch.peers = [
            Peer(rank, process_id, life, self.watch.processes.get(rank))
            for rank in others
            for life, process_id in [connections[rank, LIFE]]
        ]
        self._commands = [connections[rank, COMMANDS][0] for rank in others]
        for rank, connection in zip(others, self._commands, strict=True):
            connection.send("load", {**settings, "rank": rank, "count": self.count})

    def await_ready(self) -> None:
        """Wait until all ranks have loaded their parts. Raises the error of one that has not."""
        for connection in self._commands:
            with self._explained():
                connection.receive()
        self._meeting.close()
        self._is_ready = True
        self.watch.activity = "waiting for requests"

    def check(self) -> None:
        """Raises the error of the rank that has failed, if one has."""
        self.watch.check()

    def check_wait(self, rank: int, seconds: float) -> None:
        """For waits for a rank's part of an exchange: raises RankError if it will not come."""
        self.watch.check()
        if self._is_ready and seconds > STEP_SECONDS:
            raise late(rank)

    @contextlib.contextmanager
    def command(self, activity: str, name: str, *arguments: Any) -> Iterator[None]:
        """Tell the other ranks to do their part of a pass over the weights, while the block does this one's.

        Ctrl-C takes effect after the block, as the ranks must end it together. Any other error in it ends the
        other ranks. Raises RankError if a rank has failed.
        """
        if os.getpid() != self._process_id:
            raise RankError(
                "the ranks of this Runtime serve the process that loaded it; this is a fork of it"
            )
        self.watch.check()
        with _deferred_interrupt():
            self.watch.activity = activity
            try:
                for connection in self._commands:
                    connection.send(name, *arguments)
                yield
            except BaseException as error:
                if isinstance(error, ConnectionEndedError):
                    self.watch.wait_for_failure()
                self.watch.check()
                self.watch.fail(
                    error
                    if isinstance(error, RankError)
                    else RankError(
                        f"rank 0 failed while {activity} ({error}), so the other ranks were ended; load again"
                    )
                )
                raise
            self.watch.activity = "waiting for requests"

    def abandon(self, error: BaseException) -> None:
        """End the other ranks, as the first one could not load its part."""
        self._meeting.close()
        if self.watch.failure is None:
            self.watch.fail(RankError(f"rank 0 could not load its part ({error})"))
        self._end()

    def close(self) -> None:
        """End the other ranks; returns when they have ended. It may be called again."""
        if os.getpid() != self._process_id:
            return
        self._meeting.close()
        if self.watch.failure is None:
            self.watch.failure = RankError("the ranks were ended by close(); load again")
            for connection in self._commands:
                with contextlib.suppress(ConnectionEndedError):
                    connection.send("close")
            if not self._commands:
                self.watch.fail(self.watch.failure)
        self._end()

    def _end(self) -> None:
        self.watch.end()
        while self.on_close:
            self.on_close.pop()()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Replace the end of a connection by the error of the rank."""
        try:
            yield
        except ConnectionEndedError:
            self.watch.wait_for_failure()
            raise


@contextlib.contextmanager
def _deferred_interrupt() -> Iterator[None]:
    """Within the block, Ctrl-C waits for its end."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(*came[0])

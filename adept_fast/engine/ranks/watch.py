"""Watch: notices within seconds that a rank has ended or hangs, and says which.

Ranks tell each other twice a second that they live, from a thread that goes on while the main one computes. A
rank that is silent for twenty of the watcher's own turns is taken to hang: turns, not seconds, so that ranks
that were all stopped together, by Ctrl-Z or with the machine, find each other alive.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adept_fast.arguments import ParameterError
from adept_fast.checkpoint import CheckpointError
from adept_fast.engine.ranks.connection import Connection, ConnectionEndedError
from adept_fast.memory.advice import InsufficientMemoryError

BEAT_SECONDS = 0.5  # a turn
SILENT_TURNS = 20
STEP_SECONDS = 30.0  # that ranks wait for the part of another one, once all have loaded
_END_SECONDS = 5.0  # that a process has to end once it was told to


class RankError(ConnectionError):
    """A rank has ended or hangs, so the model cannot run any more; the message names the rank."""


@dataclass
class Peer:
    """Another rank. ``process`` is the child of this one that it runs in, None under torchrun."""

    rank: int
    process_id: int
    life: Connection
    process: subprocess.Popen[bytes] | None = None
    silent_turns: int = 0

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.process_id})"


def late(rank: int) -> RankError:
    """The error of a rank that lives, and does not do its part."""
    return RankError(f"rank {rank} did not do its part of a step within {STEP_SECONDS:g} s")


class Turns:
    """Tells once every BEAT_SECONDS that it is time for a turn, however often it is asked."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def is_due(self) -> bool:
        now = time.monotonic()
        if now - self._last < BEAT_SECONDS:
            return False
        self._last = now
        return True


class Watch:
    """The first rank's thread that starts and watches the others.

    A system may end a child with the thread that started it. So this thread starts the children, and lasts as
    long as they do.

    Args:
        start: starts the children: rank → process.
    ``on_failure`` has functions that are called, by any thread, once a rank has failed.
    """

    def __init__(
        self,
        start: Callable[[], dict[int, subprocess.Popen[bytes]]],
    ) -> None:
        self.failure: Exception | None = None
        self.activity = "loading"
        self.peers: Sequence[Peer] = ()
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.on_failure: list[Callable[[], None]] = []
        self._start = start
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="adept-fast ranks", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises the error of the rank that has failed, if one has."""
        if self.failure is not None:
            raise self.failure

    def fail(self, error: Exception) -> None:
        """End all other ranks, because of an error; the first one counts."""
        if self.failure is None:
            self.failure = error
        self._is_ending.set()
        for process in self.processes.values():
            process.kill()
        for peer in self.peers:
            if peer.process is None:
                with contextlib.suppress(OSError):
                    os.kill(peer.process_id, signal.SIGKILL)
        for function in self.on_failure:
            function()

    def wait_for_failure(self) -> None:
        """Give the watch the time to find out which rank has ended, and raise its error if one has."""
        self._is_ending.wait(4 * BEAT_SECONDS)
        self.check()

    def end(self) -> None:
        """Stop watching, and return once the other ranks, which were told to end, have done so."""
        self._is_ending.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self.processes = self._start()
        except OSError as error:
            self.fail(RankError(f"the processes of the other ranks could not be started: {error}"))
        turns = Turns()
        while not self._is_ending.is_set():
            failure = self._look(turns) if self.peers else self._look_at_processes()
            if failure is not None and not self._is_ending.is_set():
                self.fail(failure)
        self._await_ends()

    def _look_at_processes(self) -> Exception | None:
        """The error of a child that has ended before it has come."""
        self._is_ending.wait(BEAT_SECONDS)
        for rank, process in self.processes.items():
            if process.poll() is not None and not self.peers:
                return RankError(
                    f"rank {rank} (process {process.pid}) {_end_of(process)} before it could load"
                )
        return None

    def _look(self, turns: Turns) -> Exception | None:
        ready, _, _ = select.select([peer.life for peer in self.peers], [], [], BEAT_SECONDS)
        is_turn = turns.is_due()
        for peer in self.peers:
            failure = self._look_at(peer, peer.life in ready, is_turn)
            if failure is not None:
                return failure
        return None

    def _look_at(self, peer: Peer, has_sent: bool, is_turn: bool) -> Exception | None:
        """The error if a rank has failed."""
        try:
            if is_turn:
                peer.silent_turns += 1
                peer.life.send("alive")
            if has_sent:
                peer.silent_turns = 0
                kind, *details = peer.life.receive()
                if kind == "failed":
                    return _error_of(peer, *details)
        except ConnectionEndedError:
            how = "has ended" if peer.process is None else _end_of(peer.process)
            return RankError(
                f"{peer} {how} while {self.activity}; expected it to serve its part of the model"
            )
        if peer.silent_turns >= SILENT_TURNS:
            seconds = SILENT_TURNS * BEAT_SECONDS
            return RankError(
                f"{peer} gave no sign of life for {seconds:g} s while {self.activity}, and was ended"
            )
        return None

    def _await_ends(self) -> None:
        until = time.monotonic() + _END_SECONDS
        for process in self.processes.values():
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for peer in self.peers:
            if peer.process is None:  # its connection ends with it
                _await_end(peer.life, until)


# The errors that a rank may report by name; all others become RankErrors.
KNOWN_ERRORS: dict[str, Callable[[str], Exception]] = {
    known.__name__: known for known in (CheckpointError, ParameterError, InsufficientMemoryError)
}


def _error_of(peer: Peer, kind: str, message: str) -> Exception:
    known = KNOWN_ERRORS.get(kind)
    return RankError(f"{peer} failed: {message}") if known is None else known(f"{peer}: {message}")


def _end_of(process: subprocess.Popen[bytes]) -> str:
    """How a child has ended, in words."""
    try:
        code = process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        return "has closed its connection"
    if code >= 0:
        return f"has ended with exit status {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _await_end(life: Connection, until: float) -> None:
    with contextlib.suppress(ConnectionEndedError):
        while select.select([life], [], [], max(0.0, until - time.monotonic()))[0]:
            life.receive()

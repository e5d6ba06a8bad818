"""The life of another rank than the first: it loads its part, serves it, and ends with the first one."""

from __future__ import annotations

import os
import select
import sys
import threading
from typing import NoReturn

import torch

from adept_fast.engine.ranks.connection import Connection, ConnectionEndedError
from adept_fast.engine.ranks.loading import load_follower
from adept_fast.engine.ranks.meeting import Place
from adept_fast.engine.ranks.watch import BEAT_SECONDS, SILENT_TURNS, STEP_SECONDS, Turns, late

_FAILED = 1  # exit status


class LeaderWatch:
    """The thread that tells the first rank that this one lives, and ends this process if that does not."""

    def __init__(self, life: Connection, rank: int) -> None:
        self._life, self._rank = life, rank
        self.is_serving = False  # all ranks have loaded their parts
        self._sending = threading.Lock()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="adept-fast ranks", daemon=True)
        self._thread.start()

    def check_wait(self, rank: int, seconds: float) -> None:
        """For waits for a rank's part of an exchange: raises RankError if it does not come.

        If the first rank has ended, the thread ends this process.
        """
        if self.is_serving and seconds > STEP_SECONDS:
            raise late(rank)

    def report(self, error: Exception) -> None:
        """Tell the first rank why this one ends."""
        self._is_over.set()
        with self._sending:
            self._life.send("failed", type(error).__name__, str(error))

    def over(self) -> None:
        """The first rank has said that all is done."""
        self._is_over.set()

    def _run(self) -> None:
        turns, silent_turns = Turns(), 0
        while not self._is_over.is_set():
            ready, _, _ = select.select([self._life], [], [], BEAT_SECONDS)
            try:
                if ready:
                    silent_turns = 0
                    self._life.receive()
                if turns.is_due():
                    silent_turns += 1
                    with self._sending:
                        self._life.send("alive")
            except ConnectionEndedError:
                self._end("has ended")
            if silent_turns >= SILENT_TURNS:
                self._end(f"gave no sign of life for {SILENT_TURNS * BEAT_SECONDS:g} s")

    def _end(self, how: str) -> None:
        if self._is_over.is_set():
            return
        if self._rank == 1:  # one of all tells the user
            sys.stderr.write(f"adept-fast: rank 0 {how}, so the other ranks end too\n")
            sys.stderr.flush()
        os._exit(_FAILED)


def serve(place: Place, rank: int) -> NoReturn:
    """Load this rank's part and serve it until the first rank ends. Ends the process."""
    watch = LeaderWatch(place.life, rank)
    try:
        _, told = place.commands.receive()
        runner = load_follower(place, told, watch.check_wait)
        place.commands.send("ready")
        with torch.inference_mode():
            while (message := place.commands.receive())[0] != "close":
                watch.is_serving = True
                name, *arguments = message
                getattr(runner, name)(*arguments)
        watch.over()
        sys.exit(0)
    except ConnectionEndedError:
        threading.Event().wait(SILENT_TURNS * BEAT_SECONDS)  # the watch says so, and ends the process
        sys.exit(_FAILED)
    except Exception as error:  # noqa: BLE001 (the first rank raises it)
        watch.report(error)
        sys.exit(_FAILED)

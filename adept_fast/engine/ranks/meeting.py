"""Where ranks meet: a directory of their own, with a socket and the memory that they share.

Only this user may enter it. It is removed once all have come, so that nothing is left whatever ends them.
"""

from __future__ import annotations

import mmap
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from adept_fast import __version__
from adept_fast.engine.ranks.connection import Connection, ConnectionEndedError
from adept_fast.engine.ranks.watch import RankError
from adept_fast.ops.shared_memory import memory_bytes
from adept_fast.system.short_text import short_repr

COMMANDS, LIFE = "commands", "life"  # the two connections of a rank with the first one
_IN_MEMORY = Path("/dev/shm")
_SOCKET, _MEMORY, _STORE = "socket", "memory", "store"
_POLL_SECONDS = 0.2
_HELLO_SECONDS = 5.0


class Meeting:
    """The first rank's side."""

    def __init__(self, count: int) -> None:
        self.count = count
        where = _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK) else None
        self.directory = Path(tempfile.mkdtemp(prefix="adept-fast-", dir=where))
        with (self.directory / _MEMORY).open("xb") as file:
            file.truncate(memory_bytes(count))
        self.memory = _map(self.directory)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.directory / _SOCKET))
        self._listener.listen()
        self._listener.settimeout(_POLL_SECONDS)

    @property
    def store(self) -> Path:
        """The file of torch's FileStore, by which NCCL finds its peers."""
        return self.directory / _STORE

    def accept(self, check: Callable[[], None]) -> dict[tuple[int, str], tuple[Connection, int]]:
        """The connections of all other ranks by rank and purpose, each with the process of its rank.

        ``check`` is called while they are awaited, and raises if one will not come.
        """
        found: dict[tuple[int, str], tuple[Connection, int]] = {}
        while len(found) < 2 * (self.count - 1):
            check()
            try:
                end, _ = self._listener.accept()
            except TimeoutError:
                continue
            end.settimeout(_HELLO_SECONDS)
            connection = Connection(end)
            try:
                version, rank, purpose, process_id = connection.receive()
            except (ConnectionEndedError, ValueError):
                connection.close()
                continue
            if version != __version__:
                raise RankError(
                    f"rank {short_repr(rank)} runs adept-fast {short_repr(version)}; "
                    f"expected {__version__}, as rank 0 does"
                )
            is_known = rank in range(1, self.count) and purpose in (COMMANDS, LIFE)
            if not is_known or type(process_id) is not int or (rank, purpose) in found:
                connection.close()
                continue
            end.settimeout(None)
            found[rank, purpose] = connection, process_id
        return found

    def close(self) -> None:
        """Remove the directory; connections and mapped memory stay."""
        self._listener.close()
        shutil.rmtree(self.directory, ignore_errors=True)


class Place:
    """The side of another rank, which comes to ``directory``."""

    def __init__(self, directory: Path, rank: int, wait_seconds: float = 60.0) -> None:
        self.memory = _map(directory)
        self.store = directory / _STORE
        self.commands, self.life = (
            _connect(directory / _SOCKET, rank, purpose, wait_seconds) for purpose in (COMMANDS, LIFE)
        )


def _connect(path: Path, rank: int, purpose: str, wait_seconds: float) -> Connection:
    end = socket.socket(socket.AF_UNIX)
    until = time.monotonic() + wait_seconds
    while True:
        try:
            end.connect(str(path))
            break
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(_POLL_SECONDS)
    connection = Connection(end)
    connection.send(__version__, rank, purpose, os.getpid())
    return connection


def _map(directory: Path) -> mmap.mmap:
    with (directory / _MEMORY).open("r+b") as file:
        return mmap.mmap(file.fileno(), 0)

"""Connection: messages between two ranks over a socket of this machine."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

_LENGTH = struct.Struct("<I")
_MAX_BYTES = 1 << 24  # of a message; the longest has the tokens of a chunk


class ConnectionEndedError(ConnectionError):
    """The other side is gone."""


class Connection:
    """Lists of plain values, in order. One thread sends and one receives."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, *message: Any) -> None:
        """Raises ConnectionEndedError."""
        contents = json.dumps(message).encode()
        try:
            self._socket.sendall(_LENGTH.pack(len(contents)) + contents)
        except OSError as error:
            raise ConnectionEndedError(str(error)) from error

    def receive(self) -> list[Any]:
        """The next message; waits. Raises ConnectionEndedError, also for what is no message."""
        (size,) = _LENGTH.unpack(self._read(_LENGTH.size))
        if size > _MAX_BYTES:
            raise ConnectionEndedError(f"a message has {size} bytes; expected at most {_MAX_BYTES}")
        try:
            message = json.loads(self._read(size))
        except ValueError as error:
            raise ConnectionEndedError(f"a message is no JSON ({error})") from error
        if not isinstance(message, list) or not message:
            raise ConnectionEndedError("a message is no list")
        return message

    def close(self) -> None:
        self._socket.close()

    def _read(self, size: int) -> bytes:
        contents = bytearray()
        while len(contents) < size:
            try:
                received = self._socket.recv(size - len(contents))
            except OSError as error:
                raise ConnectionEndedError(str(error)) from error
            if not received:
                raise ConnectionEndedError("the connection was closed")
            contents += received
        return bytes(contents)

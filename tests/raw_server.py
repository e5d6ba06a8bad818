"""A server on localhost that answers with given bytes, whatever they are."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Sequence

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"  # the connection's end ends the stream
MODELS = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"data": [{"id": "raw"}]}'


class RawServer:
    """Serves on a free port of 127.0.0.1 while it is entered: a connection is a request and its answer.

    Args:
        answer: the answer to a chat request, sent in these pieces.
        models: the answer to ``GET /v1/models``.
        certificate: makes it a server of TLS.

    ``requests`` are the heads of the requests so far, and ``closed`` is set when a client has closed its
    connection before it had the whole answer.
    """

    def __init__(
        self, answer: Sequence[bytes] = (), *, models: bytes = MODELS, certificate: str | None = None
    ) -> None:
        self.requests: list[str] = []
        self.closed = threading.Event()
        self._answer, self._models = answer, models
        self._context = None
        if certificate is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(certificate)
        self._socket = socket.create_server(("127.0.0.1", 0))
        scheme = "http" if certificate is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> RawServer:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._socket.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                try:
                    if self._context is not None:
                        connection = self._context.wrap_socket(connection, server_side=True)
                    self._reply(connection)
                except OSError:
                    self.closed.set()
                finally:
                    connection.close()

    def _reply(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as file:
            head = b"".join(iter(file.readline, b"\r\n")).decode("latin-1")
            self.requests.append(head)
            length = [line for line in head.lower().splitlines() if line.startswith("content-length:")]
            file.read(int(length[0].partition(":")[2]) if length else 0)
        for piece in [self._models] if head.startswith("GET ") else self._answer:
            connection.sendall(piece)

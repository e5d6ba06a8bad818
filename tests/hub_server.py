"""A Hugging Face hub on localhost, with the routes by which huggingface_hub lists and downloads a model."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


def files_below(directory: Path) -> dict[str, bytes]:
    """The files of a directory, as a repository has them."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@dataclass
class Repository:
    """Files by commit, and commits by the names of branches and tags."""

    commits: dict[str, Mapping[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], *names: str) -> str:
        """Add a commit, which the branches and tags of these names are from now on; its id."""
        contents = b"".join(name.encode() + data for name, data in sorted(files.items()))
        commit = hashlib.sha1(contents, usedforsecurity=False).hexdigest()
        self.commits[commit] = dict(files)
        self.refs |= dict.fromkeys(names, commit)
        return commit


class HubServer(ThreadingHTTPServer):
    """Serves ``repositories``, and goes wrong as it is told.

    Attributes:
        requests: ``(method, path, Range header)`` of each request so far.
        statuses: instead of the file, or of the listing for ``""``: a status, an X-Error-Code and a message.
        cuts: bytes after which the connection breaks, once, while a file is sent.
        then: the status of a file, from when its transfer has been cut.
        lists: a body that is the answer to every request for a listing.
        says_commit: an X-Repo-Commit header in place of the right one.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.statuses: dict[str, tuple[int, str, str]] = {}
        self.cuts: dict[str, int] = {}
        self.then: dict[str, int] = {}
        self.lists: bytes | None = None
        self.says_commit: str | None = None
        self.tokens: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def downloaded(self) -> list[str]:
        """The files whose contents were requested since the last call, in order."""
        paths = [path for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]
        self.requests.clear()
        return [path.split("/", 5)[5] for path in paths]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no fault of the server."""


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:  # noqa: N802
        self._answer()

    def do_GET(self) -> None:  # noqa: N802
        self._answer()

    def _answer(self) -> None:
        path = urlsplit(self.path).path  # quoted: a revision may have slashes
        self.server.requests.append((self.command, path, self.headers.get("Range")))
        self.server.tokens.add(self.headers.get("Authorization"))
        if listing := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._list(listing[1], unquote(listing[2] or "main"))
        elif file := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._send_file(file[1], unquote(file[2]), unquote(file[3]))
        else:
            self._send(404, b"")

    def _find(self, hub_id: str, revision: str) -> tuple[str, Mapping[str, bytes]] | None:
        repository = self.server.repositories.get(hub_id)
        if repository is None:
            self._fail(401, "RepoNotFound", "Repository not found")
            return None
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            self._fail(404, "RevisionNotFound", "Invalid rev id")
            return None
        return commit, repository.commits[commit]

    def _list(self, hub_id: str, revision: str) -> None:
        if "" in self.server.statuses:
            self._fail(*self.server.statuses[""])
        elif self.server.lists is not None:
            self._send(200, self.server.lists)
        elif found := self._find(hub_id, revision):
            commit, files = found
            siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
            answer = {"id": hub_id, "sha": commit, "siblings": siblings, "tags": [], "private": False}
            self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _send_file(self, hub_id: str, revision: str, name: str) -> None:
        found = self._find(hub_id, revision)
        if not found:
            return
        commit, files = found
        if name in self.server.statuses:
            self._fail(*self.server.statuses[name])
            return
        if name not in files:
            self._fail(404, "EntryNotFound", "Entry not found")
            return
        data = files[name]
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": self.server.says_commit or commit,
            "Accept-Ranges": "bytes",
        }
        status = 200
        if requested := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            first = int(requested[1])
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
            status, data = 206, data[first:]
        self._send(status, data, headers, self.server.cuts.pop(name, None) if self.command == "GET" else None)
        if self.close_connection and name in self.server.then:
            self.server.statuses[name] = (self.server.then[name], "", "it broke")

    def _fail(self, status: int, code: str, message: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": message})

    def _send(
        self, status: int, body: bytes, headers: Mapping[str, str] | None = None, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if cut is not None:
            self.close_connection = True
        if self.command != "HEAD":
            self.wfile.write(body[:cut])

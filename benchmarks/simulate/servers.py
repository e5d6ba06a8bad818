"""ReplicaServers: real servers of one checkpoint, of which some are loaded while the others are stopped."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adept_fast.tokenizer.tokenizer import Tokenizer
from benchmarks.samples import wait_for_quiet
from benchmarks.serving.figures import LoadError, check
from benchmarks.serving.measure import IDLE_SECONDS, run_client
from benchmarks.serving.plan import Prompts, Span, body_of
from benchmarks.serving.servers import HOST, Server, ServerVariant, Setting
from benchmarks.simulate.request import Clients
from benchmarks.workers import OURS


@dataclass
class ReplicaServers:
    """``observe`` loads the first ``count`` of them."""

    servers: Sequence[Server]
    prompts: Prompts
    model: str
    max_others_share: float
    attempts: int
    dropped: int = 0

    @property
    def pids(self) -> list[int]:
        return [server.pid for server in self.servers]

    def observe(self, count: int, clients: Clients, span: Span, seed: int) -> tuple[dict[str, Any], float]:
        """What the client observed, and the share of the processors that others used.

        A sample that others disturbed is taken again; after ``attempts`` it is the one that they disturbed
        least. Raises LoadError if a server counts other tokens than the trace has.
        """
        plan = self._plan(count, clients, span, seed)
        best: tuple[float, dict[str, Any]] | None = None
        for _ in range(self.attempts):
            wait_for_quiet(self.max_others_share)
            for server in self.servers[:count]:
                server.go_on()
            try:
                observed, others = run_client(plan)
            finally:
                for server in self.servers[:count]:
                    server.wait_until_idle(IDLE_SECONDS)
                    server.pause()
            check(observed["requests"])
            _compare_counts(observed["requests"], clients)
            if best is None or others < best[0]:
                best = others, observed
            if others <= self.max_others_share:
                break
            self.dropped += 1
        assert best is not None
        return best[1], best[0]

    def _plan(self, count: int, clients: Clients, span: Span, seed: int) -> dict[str, Any]:
        numbers = random.Random(seed)
        extra = {"model": self.model, "ignore_eos": True, "add_bos": False}
        return {
            "host": HOST,
            "ports": [server.port for server in self.servers[:count]],
            "path": "/v1/completions",
            "warm_up": [body_of(self.prompts.draw(16, numbers), 8, extra) for _ in range(2)],
            "clients": [
                [
                    {
                        "name": f"{client} {at}",
                        "at": request.at,
                        "body": body_of(
                            self.prompts.draw(request.prompt_tokens, numbers), request.answer_tokens, extra
                        ),
                    }
                    for at, request in enumerate(requests)
                ]
                for client, requests in enumerate(clients)
            ],
            "begin": span.begin,
            "end": span.end,
            "limit": span.limit,
            "pids": [server.pid for server in self.servers[:count]],
        }


def _compare_counts(requests: Sequence[dict[str, Any]], clients: Clients) -> None:
    for observed in requests:
        if observed["ended"] is not None:
            client, at = map(int, observed["name"].split())
            request = clients[client][at]
            found = observed["prompt_tokens"], observed["completion_tokens"]
            if found != (request.prompt_tokens, request.answer_tokens):
                raise LoadError(
                    f"a server counted {found} tokens of a prompt and its answer; expected "
                    f"{(request.prompt_tokens, request.answer_tokens)}"
                )


@contextmanager
def replica_servers(
    count: int, setting: Setting, folder: Path, *, max_others_share: float, attempts: int
) -> Iterator[ReplicaServers]:
    """Start that many servers, and stop them until they are loaded."""
    servers: list[Server] = []
    try:
        for number in range(count):
            place = folder / f"replica-{number}"
            place.mkdir()
            servers.append(Server(ServerVariant(OURS, setting.format), {}, setting, place))
            servers[-1].pause()
        pieces = Tokenizer.from_file(setting.checkpoint / "tokenizer.model").pieces()
        model = setting.checkpoint.name
        yield ReplicaServers(servers, Prompts.of_pieces(pieces), model, max_others_share, attempts)
    finally:
        for server in servers:
            server.close()

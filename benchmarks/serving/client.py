"""The process that loads a server and notes when each token arrives: ``python -m benchmarks.serving.client``.

It shares the processors with the server, so it does little: a request is bytes that were made before, an
answer is kept as it arrives with the time, and is read after the last one has ended. It needs the standard
library alone. A plan comes as JSON from stdin, and what was observed goes to stdout; times are seconds since
the start of the load. A plan:

``host``, ``ports``, ``path``
    where requests go: of several ports to the one with the fewest open requests, the first of equals
``warm_up``
    bodies of requests that are answered one after the other before the start
``clients``
    of each a list of requests, ``{"name", "at", "body"}``: one is sent when the last is answered, and not
    before ``at``
``begin``, ``end``
    the window that is measured; no request is sent after it
``limit``
    when connections are closed that have not ended by themselves
``pids``
    processes of the server, whose processor time in the window is measured
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.serving.event_stream import AnswerError, EventStream

WARM_UP_SECONDS = 120.0


class WarmUpError(RuntimeError):
    """The server did not answer a request to warm up."""


@dataclass
class Observed:
    """An answer: when its tokens arrived, and why it ended. Counts are None if the server sends no usage."""

    name: str
    sent: float
    first: float | None = None
    ended: float | None = None
    arrivals: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None


class Exchange(asyncio.Protocol):
    """One request on a connection of its own; ``done`` is set when the connection has ended."""

    def __init__(self, request: bytes) -> None:
        self.pieces: list[tuple[float, bytes]] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None
        self._request = request

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.pieces.append((time.perf_counter(), data))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()


def request_bytes(plan: dict[str, Any], body: dict[str, Any]) -> bytes:
    text = json.dumps(body).encode()
    header = (
        f"POST {plan['path']} HTTP/1.1\r\nHost: {plan['host']}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nAccept: text/event-stream\r\nContent-Length: {len(text)}\r\n\r\n"
    )
    return header.encode() + text


@dataclass
class Load:
    """Sends the requests of a plan; ``run`` returns what was observed. Raises WarmUpError."""

    plan: dict[str, Any]
    start: float = 0.0
    exchanges: list[tuple[str, float, Exchange]] = field(default_factory=list)
    open: dict[Exchange, int] = field(default_factory=dict)  # with the port of each
    edges: list[dict[str, float]] = field(default_factory=list)

    async def run(self) -> dict[str, Any]:
        requests = [
            [(each["name"], each.get("at", 0.0), request_bytes(self.plan, each["body"])) for each in client]
            for client in self.plan["clients"]
        ]
        for port, body in product(self.plan["ports"], self.plan["warm_up"]):
            exchange = await self._send(request_bytes(self.plan, body), port)
            await asyncio.wait_for(exchange.done, WARM_UP_SECONDS)
            self.open.pop(exchange, None)
            observed = read_answer("warm-up", 0.0, 0.0, exchange)
            if observed.error:
                raise WarmUpError(f"the server did not answer a request to warm up: {observed.error}")
        self.exchanges.clear()
        loop = asyncio.get_running_loop()
        self.start = time.perf_counter()
        for edge in ("begin", "end"):
            loop.call_later(self.plan[edge], self._note_time)
        loop.call_later(self.plan["limit"], self._close_all)
        await asyncio.gather(*map(self._run_client, requests))
        await asyncio.sleep(max(0.0, self.plan["end"] - self._now() + 0.01))
        return {
            "requests": [
                asdict(read_answer(name, sent, self.start, each)) for name, sent, each in self.exchanges
            ],
            "edges": self.edges,
        }

    def _now(self) -> float:
        return time.perf_counter() - self.start

    async def _run_client(self, requests: list[tuple[str, float, bytes]]) -> None:
        for name, at, request in requests:
            await asyncio.sleep(max(0.0, at - self._now()))
            if self._now() >= self.plan["end"]:
                return
            sent = self._now()
            exchange = await self._send(request)
            self.exchanges.append((name, sent, exchange))
            await exchange.done
            self.open.pop(exchange, None)

    async def _send(self, request: bytes, port: int | None = None) -> Exchange:
        exchange = Exchange(request)
        port = port or self._port()
        self.open[exchange] = port  # before it is connected, so that the next request knows of it
        await asyncio.get_running_loop().create_connection(lambda: exchange, self.plan["host"], port)
        return exchange

    def _port(self) -> int:
        counts = Counter(self.open.values())
        return min(self.plan["ports"], key=counts.__getitem__)

    def _note_time(self) -> None:
        """Processor time of this process and of the server's, at an edge of the window."""
        own = os.times()
        server = sum(processor_seconds(pid) for pid in self.plan["pids"])
        self.edges.append({"at": self._now(), "client": own.user + own.system, "server": server})

    def _close_all(self) -> None:
        for exchange in list(self.open):
            exchange.close()


def processor_seconds(pid: int) -> float:
    """That a process has used; 0 if it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    fields = text.rpartition(")")[2].split()  # the name before it may hold spaces
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def read_answer(name: str, sent: float, start: float, exchange: Exchange) -> Observed:
    """The events of an answer. Its ``ended`` is None if it was cut."""
    observed, stream = Observed(name, sent), EventStream()
    is_ended = False
    try:
        for at, piece in exchange.pieces:
            for event in stream.feed(piece):
                is_ended |= event == "[DONE]"
                if event != "[DONE]":
                    read_event(json.loads(event), at - start, observed)
    except (AnswerError, json.JSONDecodeError) as error:
        observed.error = f"{type(error).__name__}: {error}"
    if stream.status != 200 and observed.error is None:
        observed.error = f"status {stream.status}: {stream.body[:200].decode('utf-8', 'replace')}"
    if observed.error is None and (is_ended or stream.is_complete):
        observed.ended = exchange.pieces[-1][0] - start
    return observed


def read_event(event: dict[str, Any], at: float, observed: Observed) -> None:
    """Note a chunk of a completion or of a chat completion."""
    if "error" in event:
        observed.error = json.dumps(event["error"])[:200]
        return
    for choice in event.get("choices") or ():
        if choice.get("text") or (choice.get("delta") or {}).get("content"):
            observed.first = at if observed.first is None else observed.first
            observed.arrivals.append(at)
        observed.finish_reason = choice.get("finish_reason") or observed.finish_reason
    usage = event.get("usage")
    if usage:
        observed.prompt_tokens = usage["prompt_tokens"]
        observed.completion_tokens = usage["completion_tokens"]


if __name__ == "__main__":
    try:
        json.dump(asyncio.run(Load(json.load(sys.stdin)).run()), sys.stdout)
    except WarmUpError as error:
        sys.exit(str(error))

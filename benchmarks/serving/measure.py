"""Runs loads on servers, in turn, and keeps the samples."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.result_file import summarise
from benchmarks.samples import CpuTime, order_of_round
from benchmarks.serving.figures import LoadError, counts, load_figures, pause_figures
from benchmarks.serving.plan import CLOSED, LONG, OPEN, QUIET, Maker, Prompts, Request, Shape, Span
from benchmarks.serving.servers import HOST, Server, ServerVariant, Setting
from benchmarks.workers import OURS, ROOT, AbsentError, environment

LEAD_SECONDS, DRAIN_SECONDS, IDLE_SECONDS = 2.0, 5.0, 60.0
LONG_EVERY_SECONDS = 1.0
DECODE_TOKENS = 256  # of an answer beside a long prompt
WARM_UPS = 2  # requests before a load

Figures = dict[str, float]


@dataclass(frozen=True)
class Load:
    """The requests of each client, and the figures of what was observed; ``row`` names it."""

    row: str
    clients: Callable[[Maker, Span], list[list[Request]]]
    figures: Callable[[dict[str, Any], Span], Figures]


def loads_of(clients: int, rates: Sequence[float], long_prompt: int | None) -> list[Load]:
    """A closed loop; an open one of each rate; decoding with a long prompt beside it, and without."""
    loads = [Load(CLOSED, lambda maker, span: maker.closed(clients, span.begin / 2), load_figures)]
    for rate in rates:

        def arriving(maker: Maker, span: Span, rate: float = rate) -> list[list[Request]]:
            return maker.open(rate, span.end)

        loads.append(Load(f"{OPEN} {rate:g}", arriving, load_figures))
    for row, tokens in ((QUIET, 0), (LONG, long_prompt)) if long_prompt else ():

        def beside(maker: Maker, span: Span, tokens: int | None = tokens) -> list[list[Request]]:
            return maker.long(clients, tokens or 0, span, LONG_EVERY_SECONDS, DECODE_TOKENS)

        loads.append(Load(row, beside, pause_figures))
    return loads


@dataclass(frozen=True)
class Plan:
    """The same for every server; ``seconds`` is the time that is measured of a load."""

    loads: list[Load]
    shape: Shape
    prompts: Prompts
    seconds: float
    seed: int
    max_others_share: float
    attempts: int

    @property
    def span(self) -> Span:
        end = LEAD_SECONDS + self.seconds
        return Span(LEAD_SECONDS, end, end + DRAIN_SECONDS)


@dataclass
class Rows:
    """Samples and facts by row, such as ``adept-fast:bfloat16, closed loop``, and why others are absent.

    A row has a sample a round; None if none was clean.
    """

    samples: dict[str, list[Figures | None]] = field(default_factory=dict)
    facts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def add(self, row: str, taken: tuple[Figures, dict[str, Any]] | None) -> None:
        self.samples.setdefault(row, []).append(taken[0] if taken else None)
        if taken:
            self.facts.setdefault(row, []).append(taken[1])

    def measured(self) -> dict[str, dict[str, Any]]:
        """By row; rows without a clean sample are left out."""
        return {row: self._figures_of(row) for row in self.facts}

    def _figures_of(self, row: str) -> dict[str, Any]:
        samples = [sample for sample in self.samples[row] if sample is not None]
        names = dict.fromkeys(name for sample in samples for name in sample)
        figures: dict[str, Any] = {
            name: summarise(sample[name] for sample in samples if name in sample) for name in names
        }
        facts = self.facts[row]
        for name in ("requests", "cut"):
            figures[name] = sum(fact[name] for fact in facts)
        for name in ("mean_prompt_tokens", "tokens_per_event"):
            known = [fact[name] for fact in facts if fact[name] is not None]
            figures[name] = sum(known) / len(known) if known else None
        return figures | {"clean_samples": len(samples), "dropped_total": self.dropped.get(row, 0)}

    def times_as_fast(self) -> dict[str, dict[str, Any]]:
        """Tokens a second of our closed loop over those of the others', round by round."""
        series = {row: samples for row, samples in self.samples.items() if row.endswith(CLOSED)}
        found: dict[str, dict[str, Any]] = {}
        for ours, own in series.items():
            for other, theirs in series.items():
                pairs = [(a, b) for a, b in zip(own, theirs, strict=False) if a and b]
                if ours.startswith(OURS) and not other.startswith(OURS) and pairs:
                    ratios = (a["tokens_per_second"] / b["tokens_per_second"] for a, b in pairs)
                    found.setdefault(ours, {})[other] = summarise(ratios)
        return found


@contextmanager
def started_servers(
    variants: Sequence[ServerVariant],
    programs: Mapping[str, str],
    settings: Mapping[str, Setting],
    folder: Path,
    rows: Rows,
) -> Iterator[list[Server]]:
    """Start every server and pause it; ``rows`` notes the absent ones. Our absence is an error.

    SIGTERM ends the servers too, which are in sessions of their own.
    """
    running: list[Server] = []
    terminate = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        for variant in tqdm(variants, desc="starting", disable=None):
            try:
                server = Server(variant, programs, settings[str(variant)], folder)
            except AbsentError as error:
                if variant.name == OURS:
                    raise
                rows.absent[str(variant)] = str(error)
                continue
            running.append(server)
            server.pause()
        yield running
    finally:
        for server in running:
            server.close()
        signal.signal(signal.SIGTERM, terminate)


def measure_all(plan: Plan, servers: list[Server], rounds: int, rows: Rows) -> None:
    """A sample of every load and server in each round. A row that fails is absent from then on."""
    short = replace(plan, seconds=1.0, attempts=1)
    for server in tqdm(servers, desc="warming up", disable=None):
        _clean_sample(short, plan.loads[0], server, -1, rows)
    with tqdm(total=rounds * len(plan.loads) * len(servers), desc="samples", disable=None) as bar:
        for at in range(rounds):
            for load in plan.loads:
                for server in order_of_round(servers, at):
                    taken = _clean_sample(plan, load, server, at, rows)
                    if row_of(server, load) not in rows.absent:
                        rows.add(row_of(server, load), taken)
                    bar.update()


def row_of(server: Server, load: Load) -> str:
    return f"{server.variant}, {load.row}"


def _clean_sample(
    plan: Plan, load: Load, server: Server, at: int, rows: Rows
) -> tuple[Figures, dict[str, Any]] | None:
    row = row_of(server, load)
    if row in rows.absent:
        return None
    try:
        for _ in range(plan.attempts):
            figures, facts = measure(plan, load, server, at)
            if facts["others_share"] <= plan.max_others_share:
                return figures, facts
            rows.dropped[row] = rows.dropped.get(row, 0) + (at >= 0)
    except LoadError as error:
        if server.variant.name == OURS:
            raise
        rows.absent[row] = f"{error}; its log ends with {server.last_words()}"
    return None


def measure(plan: Plan, load: Load, server: Server, at: int) -> tuple[Figures, dict[str, Any]]:
    """One load: its figures, and facts of it. Raises LoadError."""
    maker = Maker(plan.prompts, plan.shape, plan.seed + at, server.variant.kind.extra(server.setting))
    span = plan.span
    request = {
        "host": HOST,
        "ports": [server.port],
        "path": "/v1/completions",
        "warm_up": maker.warm_up(WARM_UPS),
        "clients": load.clients(maker, span),
        "begin": span.begin,
        "end": span.end,
        "limit": span.limit,
        "pids": [server.pid],
    }
    server.go_on()
    observed, others_share = run_client(request)
    server.wait_until_idle(IDLE_SECONDS)
    server.pause()
    figures = load.figures(observed, span)
    return figures, counts(observed["requests"]) | {"others_share": others_share}


def run_client(request: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """What the client observes of its plan, and the share of the processors that others used meanwhile.

    Others are neither the client nor the plan's ``pids``. Raises LoadError.
    """
    before = CpuTime.now(request["pids"])
    client = subprocess.run(
        [sys.executable, "-m", "benchmarks.serving.client"],
        input=json.dumps(request),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | environment(),
    )
    others_share = CpuTime.now(request["pids"]).others_share_since(before)
    if client.returncode:
        raise LoadError(f"the client ended with {client.returncode}")
    return json.loads(client.stdout), others_share

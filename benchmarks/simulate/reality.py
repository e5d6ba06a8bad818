"""Loads real servers and simulated ones with the same requests, and compares what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tqdm import tqdm

from benchmarks.result_file import summarise
from benchmarks.serving.figures import load_figures
from benchmarks.serving.plan import CLOSED, OPEN, Span
from benchmarks.simulate.arrivals import Arrivals
from benchmarks.simulate.figures import observed as observed_in
from benchmarks.simulate.request import Clients
from benchmarks.simulate.servers import ReplicaServers
from benchmarks.simulate.simulation import Setup, Simulation
from benchmarks.simulate.trace import Conversations

COMPARED = ("tokens_per_second", "time_to_first_token_seconds_p50", "end_to_end_seconds_p50")
IDLE_EDGES = [{"at": at, "client": 0.0, "server": 0.0} for at in (0.0, 1.0)]  # a simulation uses no processor
REQUESTS_EACH = 400  # of a client in a closed loop: more than are answered while it is measured
LEAD_SECONDS, DRAIN_SECONDS = 3.0, 10.0
OPEN_SHARE = 0.7  # of the requests that a closed loop was answered


@dataclass
class Row:
    """A load on some replicas: a sample a round, measured and simulated."""

    measured: list[dict[str, float]] = field(default_factory=list)
    simulated: list[dict[str, float]] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    rate: float | None = None

    def figures(self) -> dict[str, Any]:
        """Of each compared figure: measured, simulated, and simulated over measured in each round."""
        found: dict[str, Any] = {}
        for name in COMPARED:
            real = [sample[name] for sample in self.measured]
            ours = [sample[name] for sample in self.simulated]
            found[name] = summarise(real)
            found[f"simulated_{name}"] = summarise(ours)
            found[f"ratio_of_{name}"] = summarise(b / a for a, b in zip(real, ours, strict=True))
        found["others_share"] = summarise(self.others)
        rounds = zip(self.measured, self.simulated, self.others, strict=True)
        names = ("measured", "simulated", "others_share")
        return found | {
            "requests_per_second": self.rate,
            "rounds": [dict(zip(names, each, strict=True)) for each in rounds],
        }

    @classmethod
    def of_rounds(cls, figures: dict[str, Any]) -> Row:
        """What ``figures`` has of the rounds, without their simulation."""
        rounds = figures["rounds"]
        return cls(
            [each["measured"] for each in rounds],
            [],
            [each["others_share"] for each in rounds],
            figures["requests_per_second"],
        )


def simulated(setup: Setup, clients: Clients, span: Span) -> dict[str, float]:
    """The figures of a simulation of the requests that the real client would send."""
    simulation = Simulation(replace(setup, send_until=span.end), clients)
    simulation.run()
    return load_figures({"requests": observed_in(simulation), "edges": IDLE_EDGES}, span)


@dataclass(frozen=True)
class Comparison:
    """What is compared. ``clients`` of the closed loop for each replica."""

    setup: Setup
    what: Conversations
    counts: Sequence[int]
    clients: int
    seconds: float
    samples: int
    seed: int

    @property
    def span(self) -> Span:
        end = LEAD_SECONDS + self.seconds
        return Span(LEAD_SECONDS, end, end + DRAIN_SECONDS)

    def closed(self, count: int, seed: int) -> Clients:
        return self.what.closed_loop(self.clients * count, REQUESTS_EACH, LEAD_SECONDS / 2, seed)

    def rate(self, count: int) -> float:
        """Requests a second of the open loop, from the simulation of the closed one."""
        setup = replace(self.setup, replicas=count, per_machine=count)
        figures = simulated(setup, self.closed(count, self.seed), self.span)
        return OPEN_SHARE * figures["answers_per_second"]

    def run(self, servers: ReplicaServers) -> dict[str, Row]:
        """Rows by name, such as ``2 replicas, closed loop``."""
        rates = {count: self.rate(count) for count in self.counts}
        rows = {
            row_name(count, load): Row(rate=rates[count] if load == OPEN else None)
            for count in self.counts
            for load in (CLOSED, OPEN)
        }
        with tqdm(total=self.samples * len(rows), desc="compared", disable=None) as bar:
            for at in range(self.samples):
                for count in self.counts:
                    for load in (CLOSED, OPEN):
                        row, seed = rows[row_name(count, load)], self.seed + at
                        clients = self.clients_of(count, row.rate, seed)
                        observed, others = servers.observe(count, clients, self.span, seed)
                        row.measured.append(load_figures(observed, self.span))
                        row.others.append(others)
                        bar.update()
        self.simulate(rows)
        return rows

    def simulate(self, rows: dict[str, Row]) -> None:
        """The requests of every round, which the rows have measured."""
        for count in self.counts:
            setup = replace(self.setup, replicas=count, per_machine=count)
            for load in (CLOSED, OPEN):
                row = rows[row_name(count, load)]
                row.simulated = [
                    simulated(setup, self.clients_of(count, row.rate, self.seed + at), self.span)
                    for at in range(len(row.measured))
                ]

    def clients_of(self, count: int, rate: float | None, seed: int) -> Clients:
        """Of an open loop, or of a closed one if there is no rate."""
        if rate is None:
            return self.closed(count, seed)
        return self.what.open_loop(Arrivals(rate), self.span.end, seed)


def row_name(count: int, load: str) -> str:
    """``2 replicas, closed loop``."""
    return f"{count} replica{'s' * (count > 1)}, {load}"

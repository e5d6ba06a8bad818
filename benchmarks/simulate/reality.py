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
        found["requests_per_second"] = self.rate
        return found | {"clean_samples": len(self.measured)}


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
        rows: dict[str, Row] = {}
        with tqdm(total=2 * self.samples * len(self.counts), desc="compared", disable=None) as bar:
            for at in range(self.samples):
                seed = self.seed + at
                for count in self.counts:
                    arrivals = Arrivals(rates[count])
                    loads = {
                        CLOSED: lambda: self.closed(count, seed),  # noqa: B023 (called before the next one)
                        OPEN: lambda: self.what.open_loop(arrivals, self.span.end, seed),  # noqa: B023
                    }
                    for load, drawn in loads.items():
                        row = rows.setdefault(f"{count} replica{'s' * (count > 1)}, {load}", Row())
                        row.rate = rates[count] if load == OPEN else None
                        observed, others = servers.observe(count, drawn(), self.span, seed)
                        row.measured.append(load_figures(observed, self.span))
                        setup = replace(self.setup, replicas=count, per_machine=count)
                        row.simulated.append(simulated(setup, drawn(), self.span))
                        row.others.append(others)
                        bar.update()
        return rows

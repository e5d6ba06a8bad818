"""Figures of a simulation, over a window of its time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.serving.plan import Span
from benchmarks.simulate.request import Request
from benchmarks.simulate.simulation import Simulation

PERCENTILES = (50, 99)


def arrivals_of(simulation: Simulation, request: Request) -> list[float]:
    """When the tokens of an answer came; none unless all did."""
    if request.outcome != "answered":
        return []
    ends = simulation.hosts[request.replica].replica.step_ends
    return ends[request.first_step : request.first_step + request.answer_tokens]


def figures_of(simulation: Simulation, span: Span, dollars_per_hour: float | None = None) -> dict[str, float]:
    """As ``benchmarks.serving.figures.load_figures`` defines them, and those that only a simulation has.

    A token belongs to the window in which it came, and so do times to a first token and to the end. Counts of
    requests, ``utilisation`` (of the time that replicas were paid for, the share in which they worked),
    ``rows`` (of a decode step, on average) and costs are of the whole simulation. Figures of which there is
    none are left out.
    """
    tokens, gaps = _tokens(simulation, span)
    answered = [request for request in simulation.requests if request.outcome == "answered"]
    series = {
        "time_to_first_token_seconds": np.array(
            [each.first - each.sent for each in answered if span.begin <= each.first < span.end]
        ),
        "seconds_between_tokens": gaps,
        "end_to_end_seconds": np.array(
            [each.ended - each.sent for each in answered if span.begin <= each.ended < span.end]
        ),
    }
    found: dict[str, float] = {"tokens_per_second": tokens / span.seconds}
    for name, values in series.items():
        for share in PERCENTILES if len(values) else ():
            found[f"{name}_p{share}"] = float(np.percentile(values, share))
    found["answers_per_second"] = len(series["end_to_end_seconds"]) / span.seconds
    return found | _counts(simulation) | _use(simulation, answered, dollars_per_hour)


def _tokens(simulation: Simulation, span: Span) -> tuple[int, Any]:
    """How many tokens came in the window, and the seconds between those of one answer."""
    ends = [np.asarray(host.replica.step_ends) for host in simulation.hosts]
    inside = [(each >= span.begin) & (each < span.end) for each in ends]
    between = [np.diff(each, prepend=np.nan) for each in ends]
    counted = [np.concatenate(([0], np.cumsum(each))) for each in inside]
    # How many answers have a token at each step, apart from their first.
    rows = [np.zeros(len(each) + 1, np.int64) for each in ends]
    tokens = 0
    for request in simulation.requests:
        if request.outcome == "answered":
            first, after = request.first_step, request.first_step + request.answer_tokens
            tokens += int(counted[request.replica][after] - counted[request.replica][first])
            rows[request.replica][first + 1] += 1
            rows[request.replica][after] -= 1
    gaps = [
        np.repeat(seconds[inside_window], np.cumsum(change)[:-1][inside_window])
        for seconds, inside_window, change in zip(between, inside, rows, strict=True)
    ]
    return tokens, np.concatenate(gaps) if gaps else np.empty(0)


def _counts(simulation: Simulation) -> dict[str, float]:
    sent = [request for request in simulation.requests if request.attempts or request.outcome]
    return {
        "requests": float(len(sent)),
        **{
            outcome: float(sum(request.outcome == outcome for request in sent))
            for outcome in ("answered", "rejected", "failed")
        },
        "retried": float(sum(max(0, request.attempts - 1) for request in sent)),
    }


def _use(
    simulation: Simulation, answered: Sequence[Request], dollars_per_hour: float | None
) -> dict[str, float]:
    totals = [host.replica.totals for host in simulation.hosts]
    paid = sum(host.paid_seconds for host in simulation.hosts)
    read = sum(each.prompt_tokens for each in totals)
    cached = sum(each.cached_tokens for each in totals)
    steps = sum(each.decode_steps for each in totals)
    given = sum(request.answer_tokens for request in answered)
    found = {
        "utilisation": sum(each.busy_seconds for each in totals) / paid if paid else 0.0,
        "rows": sum(each.decode_rows for each in totals) / steps if steps else 0.0,
        "cached_share": cached / (read + cached) if read + cached else 0.0,
        "replica_hours": paid / 3600,
        "answer_tokens": float(given),
    }
    if dollars_per_hour is not None and given:
        found["dollars_per_million_tokens"] = dollars_per_hour * paid / 3600 / given * 1e6
    return found


def observed(simulation: Simulation) -> list[dict[str, Any]]:
    """The answers in the form in which benchmarks.serving.client observes real ones."""
    return [
        {
            "name": "simulated",
            "sent": request.sent,
            "first": request.first,
            "ended": request.ended,
            "arrivals": arrivals_of(simulation, request),
            "prompt_tokens": request.prompt_tokens,
            "completion_tokens": request.answer_tokens,
            "error": None,
        }
        for request in simulation.requests
        if request.outcome == "answered"
    ]

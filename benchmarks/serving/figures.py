"""The figures of a load, of what its client observed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.serving.plan import DECODING, READING, Span

Observed = dict[str, Any]  # benchmarks.serving.client.Observed, as it came
PERCENTILES = (50, 99)


class LoadError(RuntimeError):
    """A load gives no figures."""


def percentile(values: Sequence[float], share: float) -> float | None:
    """Interpolated between neighbours; None of nothing."""
    return float(np.percentile(values, share)) if len(values) else None


def gaps(requests: Iterable[Observed], span: Span) -> list[tuple[float, float]]:
    """Pairs of times at which one token of an answer arrived and the next one did, which is in the window."""
    return [
        (before, after)
        for request in requests
        for before, after in zip(request["arrivals"], request["arrivals"][1:], strict=False)
        if span.begin <= after < span.end
    ]


def check(requests: Sequence[Observed]) -> None:
    """Raises LoadError if a request failed, or none was sent."""
    failed = [request["error"] for request in requests if request["error"]]
    if failed:
        raise LoadError(f"{len(failed)} of {len(requests)} requests failed, the first with {failed[0]}")
    if not requests:
        raise LoadError("no request was sent")


def tokens_per_event(requests: Sequence[Observed]) -> float:
    """Of the answers that ended: an event may hold several tokens, and some tokens have no text."""
    ended = [request for request in requests if request["ended"] and request["completion_tokens"]]
    events = sum(len(request["arrivals"]) for request in ended)
    return sum(request["completion_tokens"] for request in ended) / events if events else 1.0


def load_figures(observed: dict[str, Any], span: Span) -> dict[str, float]:
    """Of a closed or an open loop: each is over the window. Times are seconds.

    A token belongs to the window in which it arrived, a time to a first token too, and a time to the end that
    of the end. Figures of which there is none are left out.
    """
    requests: list[Observed] = observed["requests"]
    check(requests)
    arrived = [at for request in requests for at in request["arrivals"] if span.begin <= at < span.end]
    if not arrived:
        raise LoadError("no token arrived in the window")
    series = {
        "time_to_first_token_seconds": [
            request["first"] - request["sent"]
            for request in requests
            if request["first"] is not None and span.begin <= request["first"] < span.end
        ],
        "seconds_between_tokens": [after - before for before, after in gaps(requests, span)],
        "end_to_end_seconds": [
            request["ended"] - request["sent"]
            for request in requests
            if request["ended"] is not None and span.begin <= request["ended"] < span.end
        ],
    }
    figures = {"tokens_per_second": len(arrived) * tokens_per_event(requests) / span.seconds}
    for name, values in series.items():
        for share in PERCENTILES:
            found = percentile(values, share)
            if found is not None:
                figures[f"{name}_p{share}"] = found
    figures["answers_per_second"] = len(series["end_to_end_seconds"]) / span.seconds
    return figures | processor_figures(observed["edges"])


def processor_figures(edges: Sequence[dict[str, float]]) -> dict[str, float]:
    """Cores that the client and the server used in the window, on average."""
    before, after = edges
    wall = after["at"] - before["at"]
    return {f"{who}_cores": (after[who] - before[who]) / wall for who in ("client", "server")}


def pause_figures(observed: dict[str, Any], span: Span) -> dict[str, float]:
    """What those who decode notice of a long prompt: times between their tokens, in seconds.

    ``between_tokens_…`` are over the whole window; ``while_reading_…`` over the gaps that overlap the time
    from a long prompt's sending to its first token, ``quiet_median`` over the others. ``p99_over_median`` is
    of the gaps while reading, or of all without a long prompt; ``p99_over_quiet_median`` has the median of
    the gaps without one below. Figures of which there is none are left out.
    """
    requests: list[Observed] = observed["requests"]
    check(requests)
    reading = [
        (request["sent"], request["first"])
        for request in requests
        if request["name"] == READING and request["first"] is not None
    ]
    every = gaps([request for request in requests if request["name"] == DECODING], span)
    overlaps = [any(begin < after and before < end for begin, end in reading) for before, after in every]
    seconds = [after - before for before, after in every]
    during = [gap for gap, is_during in zip(seconds, overlaps, strict=True) if is_during]
    quiet = [gap for gap, is_during in zip(seconds, overlaps, strict=True) if not is_during]
    if not seconds:
        raise LoadError("no token of those who decode arrived in the window")
    figures = {"between_tokens_median": _median(seconds), "between_tokens_p99": _p99(seconds)}
    if quiet:
        figures["quiet_median"] = _median(quiet)
    if during:
        figures |= {
            "while_reading_median": _median(during),
            "while_reading_p99": _p99(during),
            "while_reading_max": max(during),
        }
    if reading:
        figures["long_prompt_seconds"] = _median([end - begin for begin, end in reading])
        figures["long_prompts"] = float(len(reading))
    noticed = during or seconds
    for name, below in (("p99_over_median", noticed), ("p99_over_quiet_median", quiet)):
        if below and _median(below):  # 0 where tokens come in bursts
            figures[name] = _p99(noticed) / _median(below)
    return figures | processor_figures(observed["edges"])


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))


def _p99(values: Sequence[float]) -> float:
    return float(np.percentile(values, 99))


def counts(requests: Sequence[Observed]) -> dict[str, Any]:
    """Facts of a load: requests, how many were cut at the limit, tokens of prompts, tokens an event holds."""
    prompts = [request["prompt_tokens"] for request in requests if request["prompt_tokens"]]
    return {
        "requests": len(requests),
        "cut": sum(request["ended"] is None for request in requests),
        "mean_prompt_tokens": sum(prompts) / len(prompts) if prompts else None,
        "tokens_per_event": tokens_per_event(requests),
    }

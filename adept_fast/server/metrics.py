"""Metrics of a server, in the form that Prometheus reads. Each server has a registry of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric

from adept_fast import __version__
from adept_fast.server.answering import Load

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "adept_fast_"

# Asked every few seconds by what watches a server, and of interest only when they fail.
QUIET_ENDPOINTS = ("/health", "/healthz", "/metrics")

# From a token of a small model on a GPU to a prompt of a large one on a CPU.
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_REQUEST_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

# Statuses of requests that are refused before they reach the model.
_REJECTIONS = {
    401: "key",
    403: "host",
    408: "body",
    413: "body",
    415: "body",
    429: "queue_full",
    503: "stopping",
}


class Metrics:
    """The counters and histograms of one server.

    Args:
        load: returns what the engine is doing, at each scrape.
        is_ready: whether requests are taken, at each scrape.
    """

    def __init__(self, model_name: str, load: Callable[[], Load], is_ready: Callable[[], bool]) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter("http_requests", "Responses.", "endpoint", "status")
        self._rejected = self._counter(
            "requests_rejected", "Requests refused before they reached the model.", "reason"
        )
        self._answers = self._counter("answers", "Answers that have ended.", "finish_reason")
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self._cached_tokens = self._counter(
            "cached_prompt_tokens", "Tokens of prompts that were taken from the prefix cache."
        )
        self._generated_tokens = self._counter("generated_tokens", "Tokens of answers.")
        self._queue = self._histogram(
            "queue_seconds", "Seconds until an answer got a slot.", _REQUEST_SECONDS
        )
        self._first_token = self._histogram(
            "time_to_first_token_seconds",
            "Seconds from a request to the first token of each of its answers, waiting included.",
            _REQUEST_SECONDS,
        )
        self._between_tokens = self._histogram(
            "time_between_tokens_seconds", "Seconds between two tokens of an answer.", _TOKEN_SECONDS
        )
        self._whole = self._histogram(
            "answer_seconds", "Seconds from a request to the end of each of its answers.", _REQUEST_SECONDS
        )
        for reason in _REJECTIONS.values():  # a series that appears with its first event has no rate for it
            self._rejected.labels(reason)
        self.registry.register(_Now(model_name, load, is_ready))
        ProcessCollector(registry=self.registry)

    def responded(self, endpoint: str, status: int) -> None:
        """Count a response; ``endpoint`` is the path of a route, never one that a client wrote."""
        self._requests.labels(endpoint, str(status)).inc()
        if status in _REJECTIONS and endpoint not in QUIET_ENDPOINTS:
            self._rejected.labels(_REJECTIONS[status]).inc()

    def queued(self, seconds: float) -> None:
        """An answer got a slot, so long after its request."""
        self._queue.observe(seconds)

    def first_token(self, seconds: float) -> None:
        """An answer has its first token, so long after its request."""
        self._first_token.observe(seconds)

    def tokens(self, count: int, seconds: float) -> None:
        """A step gave an answer ``count`` more tokens, so long after the step before."""
        for _ in range(count):
            self._between_tokens.observe(seconds / count)

    def ended(
        self, reason: str, seconds: float, *, prompt_tokens: int, cached_tokens: int, generated_tokens: int
    ) -> None:
        """An answer has ended: its finish reason, or ``error`` or ``cancelled``."""
        self._answers.labels(reason).inc()
        self._whole.observe(seconds)
        self._prompt_tokens.inc(prompt_tokens)
        self._cached_tokens.inc(cached_tokens)
        self._generated_tokens.inc(generated_tokens)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(PREFIX + name, help_text, buckets=buckets, registry=self.registry)


def router(metrics: Metrics) -> APIRouter:
    """The route that Prometheus reads."""
    routes = APIRouter(tags=["operations"])
    as_text: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}}}

    @routes.get("/metrics", response_class=Response, responses=as_text)
    def read_metrics() -> Response:
        """Counters, histograms and gauges in Prometheus' text format."""
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    return routes


class _Now:
    """What is read at each scrape instead of being counted."""

    def __init__(self, model_name: str, load: Callable[[], Load], is_ready: Callable[[], bool]) -> None:
        self._model_name, self._load, self._is_ready = model_name, load, is_ready

    def collect(self) -> Iterator[Metric]:
        load = self._load()
        for name, help_text, value in (
            ("ready", "1 if requests are taken, else 0.", int(self._is_ready())),
            ("answers_running", "Answers that have a slot: the batch size.", load.running),
            ("answers_waiting", "Answers that wait for a slot.", load.waiting),
            ("slots", "Answers that can run at the same time.", load.slots),
        ):
            yield GaugeMetricFamily(PREFIX + name, help_text, value=value)
        about = {"version": __version__, "model": self._model_name}
        yield InfoMetricFamily(PREFIX + "server", "The program and its model.", value=about)

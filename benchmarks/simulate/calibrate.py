"""Measures StepTimes on this machine: engines in processes of their own, and servers, several at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from tqdm import tqdm

from benchmarks.samples import CpuTime, wait_for_quiet
from benchmarks.serving.figures import LoadError
from benchmarks.serving.plan import Span
from benchmarks.serving.servers import Setting
from benchmarks.simulate.request import Clients, Request
from benchmarks.simulate.servers import ReplicaServers
from benchmarks.simulate.step_times import DecodePoint, PrefillPoint, StepTimes
from benchmarks.workers import ROOT, WorkerError, environment, settings_of

START_SECONDS = 0.05  # for all processes to have got a request
SHORT_PROMPT = 64  # tokens, of requests that time the way to the queue
LONG_ANSWER = 1000  # tokens: more than are sent while they are timed


@dataclass(frozen=True)
class Grid:
    """What is measured. ``seconds`` is the time of a sample; ``attempts`` are made at one without others."""

    busy: Sequence[int]
    rows: Sequence[int]
    contexts: Sequence[int]
    chunks: Sequence[int]
    start: int
    seconds: float
    samples: int
    max_others_share: float
    attempts: int

    @classmethod
    def of(cls, slots: int, context: int, busy: Sequence[int], **rest: Any) -> Grid:
        """Rows up to ``slots``, and chunks up to ``context``."""
        rows = sorted({1, 2, 4, slots} & set(range(1, slots + 1)))
        chunks = [tokens for tokens in (8, 64, 256, 512) if tokens <= context // 2]
        return cls(busy, rows, (32, context // 2), chunks, context // 2, **rest)


class Engines:
    """Worker processes that all do the same at once."""

    def __init__(self, count: int) -> None:
        command = [sys.executable, "-m", "benchmarks.simulate.step_worker"]
        self._processes = [
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env=os.environ | environment() | settings_of(1),
            )
            for _ in range(count)
        ]
        self.pids = [process.pid for process in self._processes]
        self.dropped = 0  # samples that others disturbed

    def load(self, setting: Setting) -> dict[str, Any]:
        """Load the checkpoint in all; what a simulation has to know of the engine."""
        request = {"checkpoint": str(setting.checkpoint), "format": setting.format, "slots": setting.clients}
        return self._call(len(self.pids), {"op": "load", "context": setting.context, **request})[0]

    def measure(self, busy: int, grid: Grid, request: dict[str, Any]) -> list[dict[str, Any]]:
        """The answers of the first ``busy`` processes, of the sample that others disturbed least."""
        taken: list[tuple[float, list[dict[str, Any]]]] = []
        while len(taken) < grid.attempts and not (taken and taken[-1][0] <= grid.max_others_share):
            if request["op"] == "decode":
                self._call(busy, request | {"op": "read"})
            wait_for_quiet(grid.max_others_share)
            before = CpuTime.now(self.pids)
            at = time.time() + START_SECONDS
            answers = self._call(busy, request | {"at": at, "seconds": grid.seconds})
            taken.append((CpuTime.now(self.pids).others_share_since(before), answers))
        self.dropped += len(taken) - 1
        return min(taken, key=lambda each: each[0])[1]

    def _call(self, count: int, request: dict[str, Any]) -> list[dict[str, Any]]:
        chosen = self._processes[:count]
        for process in chosen:
            assert process.stdin is not None
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        answers = []
        for process in chosen:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise WorkerError(f"an engine ended during {request['op']}")
            answers.append(json.loads(line))
        return answers

    def close(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(30)


@contextmanager
def engines(count: int) -> Iterator[Engines]:
    """That many worker processes."""
    found = Engines(count)
    try:
        yield found
    finally:
        found.close()


def measure_steps(workers: Engines, grid: Grid) -> StepTimes:
    """Of the engine alone: without HTTP."""
    cases: list[dict[str, Any]] = [
        {"op": "decode", "rows": rows, "context": context} for rows in grid.rows for context in grid.contexts
    ]
    cases += [{"op": "prefill", "tokens": tokens, "start": 0} for tokens in grid.chunks]
    cases += [{"op": "prefill", "tokens": tokens, "start": grid.start} for tokens in grid.chunks]
    taken: dict[tuple[int, int], list[dict[str, Any]]] = {}
    with tqdm(total=grid.samples * len(grid.busy) * len(cases), desc="steps", disable=None) as bar:
        for _ in range(grid.samples):
            for busy in grid.busy:
                for which, case in enumerate(cases):
                    taken.setdefault((busy, which), []).append(_mean_of(workers.measure(busy, grid, case)))
                    bar.update()
    decode, prefill = [], []
    for (busy, which), samples in taken.items():
        case, seconds = cases[which], median(sample["seconds"] for sample in samples)
        if case["op"] == "decode":
            context = round(median(sample["context"] for sample in samples))
            decode.append(DecodePoint(busy, case["rows"], context, seconds))
        else:
            prefill.append(PrefillPoint(busy, case["tokens"], case["start"], seconds))
    return StepTimes(decode, prefill)


def _mean_of(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {name: mean(answer[name] for answer in answers) for name in answers[0]}


def measure_overheads(
    times: StepTimes, servers: ReplicaServers, slots: int, context: int, grid: Grid
) -> None:
    """What HTTP adds, into ``times``: servers whose slots all decode, and ones with a short request each."""
    for busy in tqdm(grid.busy, desc="overheads", disable=None):
        sent, queued = [], []
        for sample in range(grid.samples):
            sent.append(_token_seconds(times, servers, busy, slots, context, sample, grid.seconds))
            queued.append(_request_seconds(times, servers, busy, sample, grid.seconds))
        times.token_seconds[busy], times.request_seconds[busy] = median(sent), median(queued)


def _token_seconds(
    times: StepTimes,
    servers: ReplicaServers,
    busy: int,
    slots: int,
    context: int,
    seed: int,
    seconds: float,
) -> float:
    """By how much a token that is sent makes its step longer than that of the engine alone."""
    prompt = 16
    answer = min(LONG_ANSWER, context - prompt)
    clients: Clients = [[Request(prompt, answer)] for _ in range(busy * slots)]
    read = 0.5 + busy * slots * times.prefill_seconds([(prompt, 0)], busy) / min(busy, 2)
    span = Span(0.0, read + 2 * seconds, read + 2 * seconds + 0.05)
    observed, _ = servers.observe(busy, clients, span, seed)
    every = [request["arrivals"] for request in observed["requests"]]
    # While all slots of all servers decode.
    begin, end = max(arrivals[0] for arrivals in every), min(arrivals[-1] for arrivals in every)
    longer = []
    for arrivals in every:
        inside = [at for at, time in enumerate(arrivals) if begin <= time <= end]
        if len(inside) > 1:
            first, last = inside[0], inside[-1]
            step = (arrivals[last] - arrivals[first]) / (last - first)
            tokens = slots * (prompt + (first + last) / 2)
            longer.append((step - times.decode_seconds(slots, round(tokens), busy)) / slots)
    if not longer:
        raise LoadError(f"no time at which {busy * slots} answers came at once; expected longer answers")
    return max(0.0, mean(longer))


def _request_seconds(
    times: StepTimes, servers: ReplicaServers, busy: int, seed: int, seconds: float
) -> float:
    """From a request's sending to its place in the queue: a client for each server, answers of one token."""
    clients: Clients = [[Request(SHORT_PROMPT, 1) for _ in range(2000)] for _ in range(busy)]
    span = Span(0.3, 0.3 + 2 * seconds, 5.0 + 2 * seconds)
    observed, _ = servers.observe(busy, clients, span, seed)
    took = [each["first"] - each["sent"] for each in observed["requests"] if each["first"] is not None]
    alone = times.prefill_seconds([(SHORT_PROMPT, 0)], busy) + times.overhead_seconds(1, busy)
    return max(0.0, median(took) - alone)

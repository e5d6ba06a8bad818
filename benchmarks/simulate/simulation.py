"""Simulation: clients, a router and replicas, event by event."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.simulate.autoscaler import Autoscaler
from benchmarks.simulate.failures import Failures
from benchmarks.simulate.replica import Engine, Replica
from benchmarks.simulate.request import Clients, Outcome, Request
from benchmarks.simulate.routing import Rule, least_outstanding
from benchmarks.simulate.step_times import StepTimes


@dataclass(frozen=True)
class Setup:
    """What is simulated.

    Args:
        per_machine: replicas that share a machine, so that the time of a step depends on how many of them
            work.
        send_until: no request is sent from this time on; those that were sent are answered.
        seed: of failures.
    """

    engine: Engine
    times: StepTimes
    replicas: int = 1
    per_machine: int = 1
    failures: Failures = field(default_factory=Failures)
    autoscaler: Autoscaler | None = None
    send_until: float = math.inf
    seed: int = 0

    def __post_init__(self) -> None:
        if self.replicas < 1 or self.per_machine < 1:
            raise ValueError(
                f"there are {self.replicas} replicas, {self.per_machine} on a machine; expected 1 or more"
            )


@dataclass(eq=False)
class StepUnderWay:
    """A step, at the pace that the number of working replicas of its machine sets."""

    began: float
    since: float  # when the pace last changed
    seconds: float  # of the whole step at this pace
    left: float = 1.0  # share of the step that was left then
    changes: int = 0  # of the pace


@dataclass(eq=False)
class Host:
    """A replica's process: whether it is up and takes requests, and since when it is paid for."""

    number: int
    replica: Replica
    machine: int
    is_up: bool = True
    is_leaving: bool = False
    life: int = 0  # grows when it dies, so that events of a former life are known
    paid_since: float | None = 0.0
    paid_seconds: float = 0.0
    step: StepUnderWay | None = None


class Simulation:
    """Runs once. The same setup and the same clients give the same result.

    Events have a time, and those of one time come in the order in which they were scheduled.
    """

    def __init__(self, setup: Setup, clients: Clients, rule: Rule = least_outstanding) -> None:
        self.setup = setup
        self.requests = [request for requests in clients for request in requests]
        self.now = 0.0
        self._rule = rule
        self._clients = [iter(requests) for requests in clients]
        self._client_of = {id(each): at for at, requests in enumerate(clients) for each in requests}
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = itertools.count()
        self._numbers = np.random.default_rng(setup.seed)
        self.hosts: list[Host] = []
        self._outstanding: list[int] = []
        self._busy: dict[int, int] = {}  # by machine
        self._alive: list[int] = []
        self._homeless: list[Request] = []  # while no replica is up
        self._unfinished = 0
        self._enough_since: float | None = None  # fewer replicas would do, for the autoscaler

    def run(self) -> None:
        """Until every request that was sent has ended."""
        for _ in range(self.setup.replicas):
            self._up(self._new_host())
        for time, number in self.setup.failures.at:
            if not 0 <= number < self.setup.replicas:
                raise ValueError(f"replica {number} is to die; expected 0 to {self.setup.replicas - 1}")
            self._at(time, self._kill, self.hosts[number])
        for client in range(len(self._clients)):
            self._send_next(client)
        if self.setup.autoscaler is not None:
            self._at(self.setup.autoscaler.every, self._scale)
        events = self._events
        while events and self._unfinished:
            self.now, _, call, arguments = heapq.heappop(events)
            call(*arguments)
        for host in self.hosts:
            self._stop_paying(host)

    def _at(self, time: float, call: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (time, next(self._count), call, arguments))

    # -- clients --

    def _send_next(self, client: int) -> None:
        request = next(self._clients[client], None)
        if request is None:
            return
        time = max(request.at, self.now + request.think)
        if time < self.setup.send_until:
            self._unfinished += 1
            self._at(time, self._send, request)

    def _send(self, request: Request) -> None:
        request.sent = self.now
        self._route(request)

    def _finish(self, request: Request, outcome: Outcome) -> None:
        request.outcome = outcome
        self._unfinished -= 1
        self._send_next(self._client_of[id(request)])

    # -- the router --

    def _route(self, request: Request) -> None:
        if not self._alive:
            self._homeless.append(request)
            return
        number = self._rule(request, self._alive, self._outstanding)
        host = self.hosts[number]
        request.attempts += 1
        request.replica = number
        self._outstanding[number] += 1
        delay = self.setup.times.queueing_seconds(max(1, self._busy[host.machine]))
        if delay:
            host.replica.arrived += host.step is not None
            self._at(self.now + delay, self._arrive, host, host.life, request)
        else:
            self._arrive(host, host.life, request)

    def _arrive(self, host: Host, life: int, request: Request) -> None:
        if host.life != life:
            self._retry(request)
        elif not host.replica.add(request):
            self._outstanding[host.number] -= 1
            self._finish(request, "rejected")
        elif host.replica.step is None:
            self._begin(host)

    def _retry(self, request: Request) -> None:
        request.first, request.first_step = math.nan, -1
        if request.attempts >= self.setup.failures.max_attempts:
            self._finish(request, "failed")
        else:
            self._route(request)

    # -- replicas --

    def _begin(self, host: Host) -> None:
        """Begin a step of a replica that has been idle."""
        self._change_pace(host.machine, 1)
        self._step(host)

    def _step(self, host: Host) -> None:
        seconds = host.replica.begin(self._busy[host.machine])
        if seconds is None:
            host.step = None
            self._change_pace(host.machine, -1)
            if host.is_leaving:
                self._leave(host)
            return
        host.step = StepUnderWay(self.now, self.now, seconds)
        self._at(self.now + seconds, self._end, host, host.step, 0)

    def _change_pace(self, machine: int, change: int) -> None:
        """One replica more works on a machine, or one less: the steps under way go on at another pace."""
        self._busy[machine] += change
        if self.setup.per_machine == 1:
            return
        first = machine * self.setup.per_machine
        for host in self.hosts[first : first + self.setup.per_machine]:
            step = host.step
            if step is not None:
                step.left = max(0.0, step.left - (self.now - step.since) / step.seconds)
                step.since, step.seconds = self.now, host.replica.seconds(self._busy[machine])
                step.changes += 1
                end = self.now + step.left * step.seconds
                self._at(end, self._end, host, step, step.changes)

    def _end(self, host: Host, step: StepUnderWay, changes: int) -> None:
        if host.step is not step or step.changes != changes:  # it died, or goes on at another pace
            return
        host.replica.totals.busy_seconds += self.now - step.began
        ended = host.replica.end(self.now)
        if ended:
            self._outstanding[host.number] -= len(ended)
            for request in ended:
                self._finish(request, "answered")
        self._step(host)

    def _new_host(self) -> Host:
        number = len(self.hosts)
        machine = number // self.setup.per_machine
        host = Host(number, Replica(self.setup.engine, self.setup.times), machine, is_up=False)
        host.paid_since = self.now
        self.hosts.append(host)
        self._outstanding.append(0)
        self._busy.setdefault(machine, 0)
        return host

    def _up(self, host: Host) -> None:
        host.is_up = True
        self._alive = [each.number for each in self.hosts if each.is_up and not each.is_leaving]
        uptime = self.setup.failures.uptime(self._numbers)
        if uptime is not None:
            self._at(self.now + uptime, self._die, host, host.life)
        homeless, self._homeless = self._homeless, []
        for request in homeless:
            self._route(request)

    def _kill(self, host: Host) -> None:
        self._die(host, host.life)

    def _die(self, host: Host, life: int) -> None:
        if host.life != life or not host.is_up:
            return
        host.is_up = False
        host.life += 1
        self._alive = [each.number for each in self.hosts if each.is_up and not each.is_leaving]
        self._outstanding[host.number] = 0
        if host.step is not None:
            host.step = None
            self._change_pace(host.machine, -1)
        lost = host.replica.lose_all()
        if host.is_leaving:
            self._stop_paying(host)
        else:
            self._at(self.now + self.setup.failures.restart_seconds, self._up, host)
        for request in lost:
            self._retry(request)

    def _leave(self, host: Host) -> None:
        host.is_up = False
        host.life += 1
        self._stop_paying(host)

    def _stop_paying(self, host: Host) -> None:
        if host.paid_since is not None:
            host.paid_seconds += self.now - host.paid_since
            host.paid_since = None

    # -- the number of replicas --

    def _scale(self) -> None:
        scaler = self.setup.autoscaler
        assert scaler is not None
        self._at(self.now + scaler.every, self._scale)
        wanted = scaler.wanted(sum(self._outstanding) + len(self._homeless))
        present = [host for host in self.hosts if host.paid_since is not None and not host.is_leaving]
        if wanted >= len(present):
            self._enough_since = None
            for _ in range(wanted - len(present)):
                self._at(self.now + scaler.start_seconds, self._up, self._new_host())
        elif self._enough_since is None:
            self._enough_since = self.now
        elif self.now - self._enough_since >= scaler.patience:
            up = [host for host in present if host.is_up]
            if len(up) > scaler.least:
                self._dismiss(min(up, key=lambda host: (self._outstanding[host.number], -host.number)))

    def _dismiss(self, host: Host) -> None:
        """Send a replica no more requests; it leaves when it has answered what it has."""
        host.is_leaving = True
        self._alive = [number for number in self._alive if number != host.number]
        if self._outstanding[host.number] == 0:
            self._leave(host)

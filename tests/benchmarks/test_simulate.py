"""Simulations of replicas: cases computed by hand, queues whose mean wait is known, and what always holds."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.serving.figures import load_figures
from benchmarks.serving.plan import Span
from benchmarks.simulate.arrivals import Arrivals
from benchmarks.simulate.autoscaler import Autoscaler
from benchmarks.simulate.failures import Failures
from benchmarks.simulate.figures import figures_of, observed
from benchmarks.simulate.lengths import Lengths
from benchmarks.simulate.prefix import Held, PrefixSlots
from benchmarks.simulate.replica import Engine
from benchmarks.simulate.request import Clients, Outcome, Request
from benchmarks.simulate.routing import PrefixAffine, RoundRobin, Rule, least_outstanding, rule_of
from benchmarks.simulate.simulation import Setup, Simulation
from benchmarks.simulate.step_times import DecodePoint, PrefillPoint, StepTimes
from benchmarks.simulate.trace import Conversations

# A step takes 1 s for one row and 0.5 s for each further one; a chunk 2 s and 0.1 s for each token.
DECODE = [DecodePoint(1, 1, 1, 1.0), DecodePoint(1, 3, 1, 2.0)]
PREFILL = [PrefillPoint(1, 10, 0, 3.0), PrefillPoint(1, 20, 0, 4.0)]
TIMES = StepTimes(DECODE, PREFILL)
FEW = Engine(slots=2, max_waiting=None, chunk_tokens=100, step_tokens=100, prefix_cache=False)


def run(
    clients: Clients, setup: Setup | None = None, rule: Rule = least_outstanding, **changes: Any
) -> Simulation:
    simulation = Simulation(replace(setup or Setup(FEW, TIMES), **changes), clients, rule)
    simulation.run()
    return simulation


def alone(*requests: Request) -> Clients:
    """Each is a client's."""
    return [[request] for request in requests]


# -- by hand --


def test_a_client_alone_waits_for_its_own_steps() -> None:
    requests = [Request(10, 4), Request(20, 1), Request(10, 2, think=5.0), Request(10, 2, at=100.0)]
    run([requests])
    # 3 s of its prompt, and 1 s for each token but the first.
    assert [(each.sent, each.first, each.ended) for each in requests] == [
        (0.0, 3.0, 6.0),
        (6.0, 10.0, 10.0),
        (15.0, 18.0, 19.0),
        (100.0, 103.0, 104.0),
    ]


def test_two_requests_share_steps_and_a_third_waits_for_a_slot() -> None:
    a, b, c = Request(10, 3), Request(10, 2, at=0.5), Request(10, 1, at=0.6)
    run(alone(a, b, c))
    # a reads until 3. Its first decode step takes 1 s, with b's prompt of 3 s: at 7. Then both decode, 1.5 s.
    assert (a.first, b.first) == (3.0, 7.0)
    assert (a.ended, b.ended) == (8.5, 8.5)
    assert (c.first, c.ended) == (11.5, 11.5)


def test_a_step_takes_few_tokens_of_a_prompt_while_others_decode() -> None:
    engine = replace(FEW, step_tokens=11)
    a, b = Request(10, 9), Request(30, 1, at=0.5)
    run(alone(a, b), Setup(engine, TIMES))
    assert b.ended == 3.0 + 3 * (3.0 + 1.0)  # three steps of 10 tokens, and one row
    assert a.ended == b.ended + 5.0


def test_prompts_that_come_together_are_read_in_one_chunk() -> None:
    a, b = Request(10, 1), Request(10, 1)
    run(alone(Request(10, 1, at=0.0), a, b), Setup(replace(FEW, slots=3), TIMES))
    assert a.ended == b.ended == 3.0 + 4.0


def test_a_full_queue_refuses() -> None:
    requests = [Request(10, 1) for _ in range(5)]
    simulation = run(alone(*requests), Setup(replace(FEW, slots=1, max_waiting=2), TIMES))
    assert [each.outcome for each in requests] == ["answered"] * 3 + ["rejected"] * 2
    assert figures_of(simulation, Span(0, 100, 100))["rejected"] == 2


def test_the_time_of_a_step_depends_on_the_replicas_of_the_machine_that_work() -> None:
    both = [DecodePoint(2, 1, 1, 3.0)], [PrefillPoint(2, 10, 0, 9.0)]
    times = StepTimes([DECODE[0], *both[0]], [PREFILL[0], *both[1]])
    a, b = Request(10, 3), Request(10, 1, at=1.0)
    run(alone(a, b), Setup(FEW, times, replicas=2, per_machine=2))
    # From 1 on a's prompt, of which two thirds are left, is read at a third of the pace; so is b's.
    assert a.first == pytest.approx(1.0 + 9.0 * 2 / 3)
    # a's second step ends at 10. b's prompt of 9 s ends then too, and a's third step is alone.
    assert (b.ended, a.ended) == pytest.approx((10.0, 11.0))
    # One that begins alone, and goes on alone after the other has worked for a while.
    e, f = Request(10, 1), Request(10, 1, at=2.0)
    run(alone(e, f), Setup(FEW, times, replicas=2, per_machine=2))
    assert (e.ended, f.ended) == pytest.approx((5.0, 7.0))  # f had a third of its prompt at 5
    c, d = Request(10, 3), Request(10, 1, at=1.0)
    run(alone(c, d), Setup(FEW, times, replicas=2, per_machine=1))
    assert (c.ended, d.ended) == (5.0, 4.0)


def test_overheads_are_added() -> None:
    times = StepTimes(DECODE, PREFILL, request_seconds={1: 0.25}, token_seconds={1: 0.5})
    request = Request(10, 3)
    run([[request]], Setup(FEW, times))
    assert (request.first, request.ended) == (0.25 + 3.5, 3.75 + 2 * 1.5)


def test_a_conversation_finds_what_its_slot_holds() -> None:
    engine = replace(FEW, prefix_cache=True, keeps_answers=True)
    turns = [Request(10, 5, conversation=1), Request(25, 1, conversation=1)]
    run([turns], Setup(engine, TIMES))
    assert turns[1].cached == 14  # ten of the prompt, and the answer without its last token
    assert turns[1].ended - turns[1].sent == pytest.approx(2.0 + 0.1 * 11)
    turns = [Request(10, 5, conversation=1), Request(25, 1, conversation=1)]
    run([turns], Setup(replace(engine, keeps_answers=False), TIMES))
    assert turns[1].cached == 10


# -- failures --


def test_requests_of_a_replica_that_dies_are_sent_again() -> None:
    a, b = Request(10, 4), Request(10, 1, at=4.5)
    failures = Failures(at=((4.0, 0),), restart_seconds=10.0)
    simulation = run(alone(a, b), failures=failures)
    assert (a.attempts, b.attempts) == (2, 1)
    assert (a.first, a.ended) == (17.0, 23.0)  # b is read in the step of a's second token
    assert b.ended == 21.0
    assert figures_of(simulation, Span(0, 30, 30))["retried"] == 1


def test_another_replica_takes_them_over_at_once() -> None:
    a, b = Request(10, 4), Request(10, 4)
    run(alone(a, b), replicas=2, failures=Failures(at=((4.0, 0),), restart_seconds=1e3))
    assert (a.replica, b.replica) == (1, 1)
    # At 4 b has its second token; the step with a's prompt lasts until 8, and that of both until 9.5.
    assert (a.first, b.ended) == (8.0, 9.5)


def test_a_request_that_loses_its_replica_too_often_fails() -> None:
    a = Request(10, 4)
    deaths = tuple((4.0 * at, 0) for at in range(1, 9))
    simulation = run([[a]], failures=Failures(at=deaths, restart_seconds=1.0, max_attempts=3))
    assert (a.outcome, a.attempts) == ("failed", 3)
    assert math.isnan(a.first)
    assert simulation.now == 12.0


def test_a_replica_that_is_to_die_has_to_be_there() -> None:
    with pytest.raises(ValueError, match="replica 1 is to die; expected 0 to 0"):
        run([[Request(1, 1)]], failures=Failures(at=((1.0, 1),)))


def test_a_replica_that_dies_takes_no_time_of_its_machine_and_is_as_good_as_new() -> None:
    both = [DecodePoint(2, 1, 1, 3.0)], [PrefillPoint(2, 10, 0, 9.0)]
    times = StepTimes([DECODE[0], *both[0]], [PREFILL[0], *both[1]])
    a, b, late = Request(10, 1), Request(10, 1), Request(10, 1, at=6.5)
    failures = Failures(at=((3.0, 0),), restart_seconds=3.0, max_attempts=1)
    run(alone(a, b, late), Setup(FEW, times, replicas=2, per_machine=2, failures=failures))
    assert (a.outcome, b.outcome) == ("failed", "answered")
    assert b.ended == pytest.approx(5.0)  # a third of it at 3, and the rest alone
    assert late.replica == 0


def test_a_slot_is_not_taken_for_a_small_part_of_what_it_holds() -> None:
    slots = PrefixSlots(2)
    slots.keep(1, Held(1, 30, 20))
    slots.keep(0, Held(2, 100, 20))
    assert slots.take([0, 1], Request(50, 1, conversation=2, shared=20)) == (1, 20)
    slots.keep(1, Held(1, 30, 20))
    assert slots.take([0, 1], Request(51, 1, conversation=2, shared=20)) == (0, 50)


def test_a_prefix_is_lost_with_its_replica() -> None:
    engine = replace(FEW, prefix_cache=True)
    turns = [Request(10, 1, conversation=1), Request(20, 1, conversation=1, think=9.0)]
    run([turns], Setup(engine, TIMES, failures=Failures(at=((5.0, 0),), restart_seconds=1.0)))
    assert turns[1].cached == 0


# -- queues whose mean is known --


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_the_mean_wait_is_that_of_md1(load: float) -> None:
    """One slot and a service of 3 s: Pollaczek and Khinchine's mean wait, within three standard errors."""
    what = Conversations(Lengths.parse("10"), Lengths.parse("1"))
    clients = what.open_loop(Arrivals(load / 3.0), 150_000.0, 5)
    run(clients, Setup(replace(FEW, slots=1), TIMES))
    waits = np.array([request.ended - request.sent - 3.0 for (request,) in clients])
    batches = waits[: len(waits) // 50 * 50].reshape(50, -1).mean(axis=1)
    error = batches.std(ddof=1) / math.sqrt(50)
    expected = load * 3.0 / (2 * (1 - load))
    assert abs(waits.mean() - expected) < 3 * error
    assert error < 0.06 * expected


def test_littles_law() -> None:
    """Requests in the system, on average over time: their rate times the time that each is there."""
    what = Conversations(Lengths.parse("5-50"), Lengths.parse("1-9"))
    clients = what.open_loop(Arrivals(0.2), 20_000.0, 1)
    simulation = run(clients, replicas=2)
    events = sorted(
        (time, change) for (each,) in clients for time, change in ((each.sent, 1), (each.ended, -1))
    )
    area = present = before = 0.0
    for time, change in events:
        area, before = area + present * (time - before), time
        present += change
    mean_seconds = np.mean([each.ended - each.sent for (each,) in clients])
    assert area / simulation.now == pytest.approx(len(clients) / simulation.now * mean_seconds)


# -- what always holds --


class Counting(Simulation):
    """Counts how often a request ends."""

    def _finish(self, request: Request, outcome: Outcome) -> None:
        self.ends = getattr(self, "ends", Counter())
        self.ends[id(request)] += 1
        super()._finish(request, outcome)


REQUESTS = st.builds(
    Request,
    prompt_tokens=st.integers(1, 40),
    answer_tokens=st.integers(1, 8),
    at=st.floats(0, 60),
    think=st.floats(0, 5),
    conversation=st.integers(0, 3),
    shared=st.just(0),
)
CLIENTS = st.lists(st.lists(REQUESTS, max_size=4), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(
    clients=CLIENTS,
    slots=st.integers(1, 3),
    max_waiting=st.sampled_from([None, 0, 2]),
    replicas=st.integers(1, 3),
    mean_seconds=st.sampled_from([None, 5.0, 40.0]),
    routing=st.sampled_from(["least", "round-robin", "prefix"]),
    seed=st.integers(0, 9),
)
def test_every_request_ends_once(
    clients: Clients,
    slots: int,
    max_waiting: int | None,
    replicas: int,
    mean_seconds: float | None,
    routing: str,
    seed: int,
) -> None:
    engine = replace(FEW, slots=slots, max_waiting=max_waiting, prefix_cache=True)
    failures = Failures(mean_seconds=mean_seconds, restart_seconds=3.0, max_attempts=3)
    setup = Setup(engine, TIMES, replicas, 2, failures, seed=seed)
    simulation = Counting(setup, clients, rule_of(routing, slots))
    simulation.run()
    requests = [request for each in clients for request in each]
    assert [getattr(simulation, "ends", Counter())[id(request)] for request in requests] == [1] * len(
        requests
    )
    for request in requests:
        if request.outcome == "answered":
            assert request.sent < request.first <= request.ended
            assert 0 <= request.cached < request.prompt_tokens
        else:
            assert request.outcome == ("rejected" if request.attempts == 0 else request.outcome)
    for each in clients:  # a client's requests follow one another
        answered = [request for request in each if request.outcome == "answered"]
        assert all(a.ended <= b.sent for a, b in zip(answered, answered[1:], strict=False))
    found = figures_of(simulation, Span(0, 1e9, 1e9))
    assert found["answered"] + found["rejected"] + found["failed"] == len(requests) == found["requests"]


@settings(max_examples=100, deadline=None)
@given(clients=CLIENTS, slots=st.integers(1, 3), replicas=st.integers(1, 3))
def test_a_replica_works_as_long_as_it_has_requests(clients: Clients, slots: int, replicas: int) -> None:
    simulation = run(clients, Setup(replace(FEW, slots=slots), TIMES), replicas=replicas)
    for host in simulation.hosts:
        spans = sorted((each.sent, each.ended) for each in simulation.requests if each.replica == host.number)
        present, until = 0.0, 0.0
        for begin, end in spans:
            present += max(0.0, end - max(begin, until))
            until = max(until, end)
        assert host.replica.totals.busy_seconds == pytest.approx(present)


@settings(max_examples=100, deadline=None)
@given(times=st.lists(st.floats(0, 50), min_size=1, max_size=12), slots=st.integers(1, 3))
def test_requests_begin_in_the_order_in_which_they_came(times: list[float], slots: int) -> None:
    requests = [Request(10, 3, at=time) for time in times]
    run(alone(*requests), Setup(replace(FEW, slots=slots), TIMES))
    in_order = sorted(requests, key=lambda each: each.at)
    assert [each.first for each in in_order] == sorted(each.first for each in in_order)


def test_a_seed_gives_the_same_simulation_and_another_seed_another() -> None:
    what = Conversations(Lengths.parse("5-50"), Lengths.parse("1-9"), turns=3, think=4.0)

    def ends(seed: int, of_failures: int) -> list[float]:
        clients = what.open_loop(Arrivals(0.1), 500.0, seed)
        failures = Failures(mean_seconds=100.0, restart_seconds=5.0)
        simulation = run(clients, Setup(FEW, TIMES, 2, failures=failures, seed=of_failures))
        return [request.ended for request in simulation.requests]

    np.testing.assert_equal(ends(1, 1), ends(1, 1))
    assert ends(1, 1) != ends(2, 1)
    assert ends(1, 1) != ends(1, 2)


# -- figures --


def test_figures_are_those_of_a_real_load() -> None:
    """The same definitions as those of answers that a client observed, computed in another way."""
    what = Conversations(Lengths.parse("5-50"), Lengths.parse("1-9"))
    clients = what.open_loop(Arrivals(0.3), 600.0, 3)
    simulation = run(clients, replicas=2)
    span = Span(100.0, 500.0, 700.0)
    edges = [{"at": at, "client": 0.0, "server": 0.0} for at in (0.0, 1.0)]
    expected = load_figures({"requests": observed(simulation), "edges": edges}, span)
    found = figures_of(simulation, span)
    for name in expected.keys() - {"client_cores", "server_cores"}:
        assert found[name] == pytest.approx(expected[name], rel=1e-9), name


def test_the_cost_of_tokens_is_that_of_the_hours_of_replicas() -> None:
    requests = [Request(10, 4), Request(10, 4)]
    simulation = run([requests], replicas=3)
    found = figures_of(simulation, Span(0, 100, 100), dollars_per_hour=3600.0)
    assert found["replica_hours"] == pytest.approx(3 * 12.0 / 3600)
    assert found["utilisation"] == pytest.approx(1 / 3)
    assert found["dollars_per_million_tokens"] == pytest.approx(3 * 12.0 / 8 * 1e6)
    assert found["rows"] == 1.0


# -- routing and scaling --


def test_rules_choose_among_the_replicas_that_are_up() -> None:
    request = Request(1, 1, conversation=7)
    assert least_outstanding(request, [0, 1, 2], [2, 1, 1]) == 1
    assert least_outstanding(request, [0, 2], [2, 0, 1]) == 2
    rule = RoundRobin()
    assert [rule(request, [0, 1, 2], [9, 9, 9]) for _ in range(4)] == [0, 1, 2, 0]
    assert [rule(request, [0, 2], [9, 9, 9]) for _ in range(3)] == [2, 0, 2]
    affine = PrefixAffine(slots=2)
    home = affine(request, [0, 1, 2], [0, 0, 0])
    full = [2 if each == home else 1 for each in range(3)]
    others = [each for each in range(3) if each != home]
    assert affine(request, [0, 1, 2], full) == others[0]
    # Other conversations stay where they are when a replica is gone.
    homes = [affine(Request(1, 1, conversation=at), [0, 1, 2], [0, 0, 0]) for at in range(60)]
    assert min(Counter(homes).values()) > 5
    for at, before in enumerate(homes):
        if before != home:
            assert affine(Request(1, 1, conversation=at), others, [0, 0, 0]) == before


def test_affine_routing_finds_more_prefixes() -> None:
    what = Conversations(Lengths.parse("20-60"), Lengths.parse("2-5"), turns=4, think=30.0)
    engine = Engine(slots=8, prefix_cache=True)

    def share(name: str) -> float:
        clients = what.open_loop(Arrivals(0.1), 3000.0, 3)
        simulation = run(clients, Setup(engine, TIMES, 4), rule_of(name, 8))
        return figures_of(simulation, Span(0, 3000, 3000))["cached_share"]

    assert share("prefix") > 2 * share("round-robin")


def test_replicas_follow_the_load_and_are_paid_for_while_they_are_there() -> None:
    burst = [Request(10, 4, at=100.0 + 2 * each) for each in range(20)]
    late = [Request(10, 4, at=600.0)]
    scaler = Autoscaler(target=2.0, least=1, most=4, every=10.0, start_seconds=5.0, patience=50.0)
    simulation = run(alone(*burst, *late), autoscaler=scaler)
    assert len(simulation.hosts) == 4
    assert all(each.outcome == "answered" for each in (*burst, *late))
    paid = [host.paid_seconds for host in simulation.hosts]
    assert simulation.now == max(paid) == 606.0
    assert sorted(paid)[:-1] == [pytest.approx(70.0, abs=40.0)] * 3
    scaled = max(each.ended for each in burst)
    run(alone(*burst, *late))
    assert scaled < max(each.ended for each in burst)

"""Growth: how many replicas so many users need, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

from benchmarks.serving.plan import Span
from benchmarks.simulate.arrivals import DAY, Arrivals
from benchmarks.simulate.figures import figures_of
from benchmarks.simulate.routing import Rule
from benchmarks.simulate.simulation import Setup, Simulation
from benchmarks.simulate.trace import Conversations

TOLERANCE = 0.02  # of a rate that is searched for
STRIDE = 1.25  # between the rates at which the search begins


@dataclass(frozen=True)
class Goal:
    """Seconds within which 99 of 100 first tokens come, and between two tokens (median); none is refused."""

    first_token_p99: float
    between_tokens_p50: float

    def is_met(self, figures: dict[str, float]) -> bool:
        unserved = figures["rejected"] + figures["failed"]
        return (
            unserved == 0
            and figures.get("time_to_first_token_seconds_p99", math.inf) <= self.first_token_p99
            and figures.get("seconds_between_tokens_p50", math.inf) <= self.between_tokens_p50
        )


@dataclass(frozen=True)
class Users:
    """What a user does in a day, and when. ``swing``: see Arrivals."""

    what: Conversations
    conversations_a_day: float
    swing: float

    def peak_rate(self, users: float) -> float:
        """Conversations a second that begin at the peak of a day."""
        return users * self.conversations_a_day / DAY * (1 + self.swing)


@dataclass(frozen=True)
class Search:
    """Finds the highest rate that replicas serve within the goal, by simulations of ``seconds``.

    The first half of the conversations are not looked at: at the beginning nobody waits.
    """

    setup: Setup
    what: Conversations
    goal: Goal
    rule: Callable[[], Rule]
    seconds: float
    seed: int

    def figures(self, replicas: int, rate: float) -> dict[str, float]:
        """Of conversations that begin at this rate."""
        clients = self.what.open_loop(Arrivals(rate), self.seconds, self.seed)
        simulation = Simulation(
            replace(self.setup, replicas=replicas, send_until=self.seconds), clients, self.rule()
        )
        simulation.run()
        return figures_of(simulation, Span(self.seconds / 2, self.seconds, self.seconds))

    def capacity(self, replicas: int, guess: float) -> tuple[float, dict[str, float]]:
        """Conversations a second, within TOLERANCE, and their figures. The search begins at ``guess``.

        Raises ValueError if not even a rate near 0 meets the goal.
        """
        rate, found = guess, self.figures(replicas, guess)
        is_met = self.goal.is_met(found)
        best: dict[str, float] = {}
        while self.goal.is_met(found) == is_met:  # until the highest rate lies between two that were tried
            if rate < 1e-6:
                raise ValueError("no rate meets the goal; expected one that an idle replica meets")
            last, best = rate, found
            rate *= STRIDE if is_met else 1 / STRIDE
            found = self.figures(replicas, rate)
        low, high = (last, rate) if is_met else (rate, last)
        best = best if is_met else found
        while high - low > TOLERANCE * high:
            middle = (low + high) / 2
            found = self.figures(replicas, middle)
            if self.goal.is_met(found):
                low, best = middle, found
            else:
                high = middle
        return low, best


@dataclass(frozen=True)
class Fleet:
    """Replicas that serve so many users at the peak of their day, and the cost."""

    users: float
    replicas: int
    spare: int
    is_simulated: bool  # rather than extrapolated from the largest number of replicas that was
    dollars_a_day: float
    dollars_a_day_scaled: float  # if replicas follow the hour
    tokens_a_day: float

    def figures(self) -> dict[str, Any]:
        return vars(self) | {
            "dollars_per_million_tokens": self.dollars_a_day / self.tokens_a_day * 1e6,
            "dollars_per_million_tokens_scaled": self.dollars_a_day_scaled / self.tokens_a_day * 1e6,
        }


def capacities(search: Search, sizes: Sequence[int]) -> dict[int, tuple[float, dict[str, float]]]:
    """By replicas: what they serve, and how."""
    found: dict[int, tuple[float, dict[str, float]]] = {}
    for size in tqdm(sorted(sizes), desc="sizes", disable=None):
        guess = 0.1 if not found else max(rate / known for known, (rate, _) in found.items()) * size
        found[size] = search.capacity(size, guess)
    return found


def replicas_for(rate: float, capacity: dict[int, float]) -> tuple[int, bool]:
    """The fewest that serve a rate, and whether so many were simulated.

    Between the sizes that were, a replica serves what it does in the next smaller one; beyond them, what it
    does in the largest.
    """
    sizes = sorted(capacity)
    for size, after in zip(sizes, [*sizes[1:], None], strict=True):
        if rate <= capacity[size]:
            return size, True
        needed = math.ceil(rate / (capacity[size] / size))
        if after is not None and needed < after:
            return needed, True
    largest = sizes[-1]
    return math.ceil(rate / (capacity[largest] / largest)), False


def spares(replicas: int, down_share: float, risk: float = 1e-3) -> int:
    """Replicas beyond those needed, so that the chance of too few being up is below ``risk``.

    Each is down for a share of the time, independently.
    """
    if down_share <= 0:
        return 0
    extra = 0
    while _chance_of_more_down(replicas + extra, extra, down_share) > risk:
        extra += 1
    return extra


def _chance_of_more_down(replicas: int, down: int, share: float) -> float:
    """That more than ``down`` of them are down: the upper tail of a binomial, by its logarithms."""
    total = 0.0
    for count in range(down + 1):
        total += math.exp(
            math.lgamma(replicas + 1)
            - math.lgamma(count + 1)
            - math.lgamma(replicas - count + 1)
            + count * math.log(share)
            + (replicas - count) * math.log1p(-share)
        )
    return 1.0 - min(1.0, total)


def fleet(
    users: float, habits: Users, capacity: dict[int, float], down_share: float, dollars_per_hour: float
) -> Fleet:
    """For so many users a day. Scaled, each hour has the replicas that its rate needs."""
    peak = habits.peak_rate(users)
    replicas, is_simulated = replicas_for(peak, capacity)
    spare = spares(replicas, down_share)
    hourly = Arrivals(peak / (1 + habits.swing), swing=habits.swing)
    scaled = 0
    for hour in range(24):
        needed, _ = replicas_for(
            max(hourly.rate_at(hour * 3600.0), hourly.rate_at((hour + 1) * 3600.0)), capacity
        )
        scaled += needed + spares(needed, down_share)
    what = habits.what
    tokens = users * habits.conversations_a_day * _tokens_of(what)
    everywhere = 24 * (replicas + spare)
    return Fleet(
        users, replicas, spare, is_simulated, everywhere * dollars_per_hour, scaled * dollars_per_hour, tokens
    )


def _tokens_of(what: Conversations) -> float:
    """Tokens of a conversation's answers, on average of many that are drawn."""
    drawn = what.open_loop(Arrivals(10.0), 200.0, 0)
    return sum(request.answer_tokens for requests in drawn for request in requests) / len(drawn)

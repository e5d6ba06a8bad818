"""StepTimes: the seconds that a step takes, between the points at which it was measured."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Of one sequence in a chunk: tokens of its prompt that are read, and those that stand before them.
Part = tuple[int, int]


@dataclass(frozen=True)
class DecodePoint:
    """``rows`` sequences of ``context`` tokens each take a step of ``seconds``, as ``busy`` replicas do."""

    busy: int
    rows: int
    context: int
    seconds: float


@dataclass(frozen=True)
class PrefillPoint:
    """``tokens`` of one prompt are read after ``start`` others, while ``busy`` replicas work."""

    busy: int
    tokens: int
    start: int
    seconds: float


def interpolated(points: Sequence[tuple[float, float]], at: float) -> float:
    """Between the neighbours of ``at`` in ascending points, and beyond them on the line of the last two."""
    if len(points) == 1:
        return points[0][1]
    right = min(max(bisect_left(points, at, key=lambda point: point[0]), 1), len(points) - 1)
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0)


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Constant and slope of the least squares; a slope of 0 where all points have one x."""
    count = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
    return mean_y - slope * mean_x, slope


@dataclass
class _Decode:
    """By rows: seconds = base + slope · tokens that are attended to."""

    base: list[tuple[float, float]]
    slope: list[tuple[float, float]]


@dataclass
class _Prefill:
    """By tokens: seconds of a chunk without a past, and more for each token that stands before it."""

    alone: list[tuple[float, float]]
    per_past_token: list[tuple[float, float]]


@dataclass
class StepTimes:
    """What a replica's work takes, by how many replicas of its machine work at that moment.

    Args:
        decode, prefill: what was measured. Between the points the times are linear in rows, in tokens, in
            context and in ``busy``; beyond them they are extrapolated.
        request_seconds: by ``busy``: from a request's sending to its place in the queue.
        token_seconds: by ``busy``: what each token that is sent adds to its step.
        position_seconds: what a token of context adds to a decode step where only one context was measured.
        source: where the figures are from, and which of them are predictions.
    """

    decode: list[DecodePoint]
    prefill: list[PrefillPoint]
    request_seconds: dict[int, float] = field(default_factory=dict)
    token_seconds: dict[int, float] = field(default_factory=dict)
    position_seconds: float = 0.0
    source: str = ""

    def __post_init__(self) -> None:
        if not self.decode or not self.prefill:
            raise ValueError(
                "step times have no points of decode or of prefill; expected at least one of each"
            )
        points: list[DecodePoint | PrefillPoint] = [*self.decode, *self.prefill]
        for point in points:
            if not point.seconds > 0:
                raise ValueError(f"{point}; expected seconds above 0")
        self._decode = {busy: self._decode_of(busy) for busy in sorted({p.busy for p in self.decode})}
        self._prefill = {busy: self._prefill_of(busy) for busy in sorted({p.busy for p in self.prefill})}
        self._rows: dict[tuple[int, int], tuple[float, float]] = {}
        self._chunks: dict[tuple[int, int], tuple[float, float]] = {}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StepTimes:
        """Raises ValueError if what is needed is not there."""
        try:
            return cls(
                [DecodePoint(**point) for point in values["decode"]],
                [PrefillPoint(**point) for point in values["prefill"]],
                {int(busy): seconds for busy, seconds in values.get("request_seconds", {}).items()},
                {int(busy): seconds for busy, seconds in values.get("token_seconds", {}).items()},
                values.get("position_seconds", 0.0),
                values.get("source", ""),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"no step times: {error}; expected decode and prefill, lists of points"
            ) from error

    def to_json(self) -> dict[str, Any]:
        return {
            "decode": [vars(point) for point in self.decode],
            "prefill": [vars(point) for point in self.prefill],
            "request_seconds": {str(busy): seconds for busy, seconds in self.request_seconds.items()},
            "token_seconds": {str(busy): seconds for busy, seconds in self.token_seconds.items()},
            "position_seconds": self.position_seconds,
            "source": self.source,
        }

    @property
    def max_rows(self) -> int:
        """The most rows that were measured."""
        return max(point.rows for point in self.decode)

    def decode_seconds(self, rows: int, context: int, busy: int = 1) -> float:
        """Of a step of ``rows`` sequences that have ``context`` tokens together."""
        found = self._rows.get((rows, busy))
        if found is None:
            found = self._rows[rows, busy] = (
                over_busy(self._decode, busy, lambda each: interpolated(each.base, rows)),
                over_busy(self._decode, busy, lambda each: interpolated(each.slope, rows)),
            )
        return found[0] + found[1] * context

    def prefill_seconds(self, parts: Iterable[Part], busy: int = 1) -> float:
        """Of a chunk with parts of several prompts."""
        parts = list(parts)
        seconds = self._chunk(sum(tokens for tokens, _ in parts), busy)[0]
        return seconds + sum(self._chunk(tokens, busy)[1] * start for tokens, start in parts if start)

    def overhead_seconds(self, tokens: int, busy: int = 1) -> float:
        """That sending so many tokens adds to a step."""
        return tokens * _at(self.token_seconds, busy)

    def queueing_seconds(self, busy: int = 1) -> float:
        """From a request's sending to its place in the queue."""
        return _at(self.request_seconds, busy)

    def _chunk(self, tokens: int, busy: int) -> tuple[float, float]:
        found = self._chunks.get((tokens, busy))
        if found is None:
            found = self._chunks[tokens, busy] = (
                over_busy(self._prefill, busy, lambda each: interpolated(each.alone, tokens)),
                over_busy(self._prefill, busy, lambda each: interpolated(each.per_past_token, tokens)),
            )
        return found

    def _decode_of(self, busy: int) -> _Decode:
        points = [point for point in self.decode if point.busy == busy]
        base: list[tuple[float, float]] = []
        slope: list[tuple[float, float]] = []
        for rows in sorted({point.rows for point in points}):
            totals = [(point.rows * point.context, point.seconds) for point in points if point.rows == rows]
            constant, each = line(totals)
            if len({total for total, _ in totals}) == 1:
                each = self.position_seconds
                constant = totals[0][1] - each * totals[0][0]
            base.append((rows, constant))
            slope.append((rows, each))
        return _Decode(base, slope)

    def _prefill_of(self, busy: int) -> _Prefill:
        points = [point for point in self.prefill if point.busy == busy]
        alone = sorted((point.tokens, point.seconds) for point in points if point.start == 0)
        if not alone:
            raise ValueError(f"prefill has no point with start 0 for {busy} busy replicas; expected one")
        past = sorted(
            (point.tokens, max(0.0, point.seconds - interpolated(alone, point.tokens)) / point.start)
            for point in points
            if point.start
        )
        return _Prefill([*alone], [*past] or [(1, 0.0)])


def over_busy(tables: Mapping[int, Any], busy: int, of: Any) -> float:
    """Between the numbers of busy replicas that were measured."""
    if busy in tables:
        return float(of(tables[busy]))
    return interpolated([(known, of(table)) for known, table in tables.items()], busy)


def _at(values: Mapping[int, float], busy: int) -> float:
    return max(0.0, interpolated(sorted(values.items()), busy)) if values else 0.0

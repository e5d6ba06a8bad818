"""Replica: a server's engine, step by step, as adept_fast.engine.engine and its scheduler run it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from benchmarks.simulate.prefix import MIN_COPIED_TOKENS, NOTHING, Held, PrefixSlots, common, wanted
from benchmarks.simulate.request import Request
from benchmarks.simulate.step_times import Part, StepTimes


@dataclass(frozen=True)
class Engine:
    """The settings of a server, which all replicas have.

    Args:
        slots: requests that run at the same time (``--batch-size``).
        max_waiting: requests that wait beyond them (``--max-queue``); None for any number.
        chunk_tokens: of prompts in one step while nobody decodes.
        step_tokens: of prompts and decoding rows in one step while somebody does (``--step-tokens``).
        prefix_cache: whether slots keep what they hold.
        keeps_answers: whether they keep answers too, which they do where a token that is prefilled has the
            bits of one that is decoded.
    """

    slots: int = 8
    max_waiting: int | None = 128
    chunk_tokens: int = 512
    step_tokens: int = 512
    prefix_cache: bool = True
    keeps_answers: bool = True

    def __post_init__(self) -> None:
        for name in ("slots", "chunk_tokens", "step_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")


@dataclass(eq=False)
class Running:
    """A request with a slot. ``first_step`` is -1 while its prompt is read."""

    request: Request
    slot: int
    read: int
    first_step: int = -1


@dataclass
class Step:
    """A step that has begun: parts of prompts, rows that decode, and requests that came since the last."""

    chunk: list[tuple[Running, int]]
    rows: int
    arrived: int


@dataclass
class Totals:
    """Of all steps of a replica."""

    steps: int = 0
    busy_seconds: float = 0.0
    decode_steps: int = 0
    decode_rows: int = 0
    prompt_tokens: int = 0  # that were read
    cached_tokens: int = 0


@dataclass
class Replica:
    """``begin`` and ``end`` take turns; requests come between or within steps. It knows nothing of time."""

    engine: Engine
    times: StepTimes
    totals: Totals = field(default_factory=Totals)
    step_ends: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.waiting: deque[Request] = deque()
        self.running: list[Running] = []  # in the order of admission
        self.rows = 0  # that decode
        self.context = 0  # tokens that the next step of these rows attends to
        self.step: Step | None = None
        self.arrived = 0  # requests that came while it worked
        self._reading = 0
        self._finishing: dict[int, list[Running]] = {}  # by the step that gives the last token
        self._prefixes = PrefixSlots(self.engine.slots)

    def add(self, request: Request) -> bool:
        """Queue a request; False if too many wait."""
        bound = self.engine.max_waiting
        if bound is not None and len(self.waiting) + 1 > bound + self.engine.slots - len(self.running):
            return False
        self.waiting.append(request)
        return True

    def lose_all(self) -> list[Request]:
        """The requests that run or wait when the process dies; nothing is left of it."""
        lost = [running.request for running in self.running] + list(self.waiting)
        self.__post_init__()
        return lost

    def begin(self, busy: int = 1) -> float | None:
        """Begin a step; the seconds that it takes, or None if there is nothing to do."""
        if self.waiting:
            self._admit()
        chunk: list[tuple[Running, int]] = []
        if self._reading:
            if self.engine.prefix_cache:
                self._copy()
            chunk = self._next_chunk()
        elif not self.rows:
            return None
        self.step = Step(chunk, self.rows, self.arrived)
        self.arrived = 0
        return self.seconds(busy)

    def seconds(self, busy: int) -> float:
        """What the step that has begun takes, if so many replicas work all the while."""
        step = self.step
        assert step is not None
        seconds, sent = 0.0, step.rows
        if step.chunk:
            parts: list[Part] = [(tokens, running.read) for running, tokens in step.chunk]
            seconds = self.times.prefill_seconds(parts, busy)
            sent += sum(
                running.read + tokens == running.request.prompt_tokens for running, tokens in step.chunk
            )
        if step.rows:
            seconds += self.times.decode_seconds(step.rows, self.context, busy)
        # A request's way to the queue is work of the same process, for which a step that has begun waits.
        seconds += step.arrived * self.times.queueing_seconds(busy)
        return seconds + self.times.overhead_seconds(sent, busy)

    def end(self, now: float) -> list[Request]:
        """End the step; the requests whose last token it gave."""
        step, self.step = self.step, None
        assert step is not None
        number = len(self.step_ends)
        self.step_ends.append(now)
        self.totals.steps += 1
        ended: list[Running] = []
        if step.rows:
            self.totals.decode_steps += 1
            self.totals.decode_rows += step.rows
            self.context += step.rows
            ended = self._finishing.pop(number, [])
            self.rows -= len(ended)
            self.context -= sum(each.request.prompt_tokens + each.request.answer_tokens for each in ended)
        for running, tokens in step.chunk:
            running.read += tokens
            self.totals.prompt_tokens += tokens
            if running.read == running.request.prompt_tokens:
                self._start_decoding(running, number, now, ended)
        if not ended:
            return []
        return self._retire(ended, now)

    def _start_decoding(self, running: Running, number: int, now: float, ended: list[Running]) -> None:
        request = running.request
        self._reading -= 1
        request.first, request.first_step, running.first_step = now, number, number
        if request.answer_tokens == 1:
            ended.append(running)
            return
        self.rows += 1
        self.context += request.prompt_tokens + 1
        self._finishing.setdefault(number + request.answer_tokens - 1, []).append(running)

    def _retire(self, ended: list[Running], now: float) -> list[Request]:
        gone = {id(each) for each in ended}
        in_order = [each for each in self.running if id(each) in gone]
        self.running = [each for each in self.running if id(each) not in gone]
        for each in in_order:
            each.request.ended = now
            if self.engine.prefix_cache:
                self._prefixes.keep(each.slot, self._held(each))
        return [each.request for each in in_order]

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.engine.slots:
            request = self.waiting.popleft()
            taken = {running.slot for running in self.running}
            free = [slot for slot in range(self.engine.slots) if slot not in taken]
            slot, read = self._prefixes.take(free, request) if self.engine.prefix_cache else (free[0], 0)
            self.running.append(Running(request, slot, read))
            self._reading += 1
            request.cached = read
            self.totals.cached_tokens += read

    def _next_chunk(self) -> list[tuple[Running, int]]:
        left = self.engine.chunk_tokens
        if self.rows:
            left = min(left, max(1, self.engine.step_tokens - self.rows))
        chunk = []
        for running in self._readers():
            tokens = min(left, running.request.prompt_tokens - running.read)
            if tokens:
                chunk.append((running, tokens))
                left -= tokens
        return chunk

    def _readers(self) -> list[Running]:
        """Those whose prompts are read, but for those that wait for an earlier one to read a prefix."""
        reading = [each for each in self.running if each.first_step < 0]
        if not self.engine.prefix_cache or len(reading) == 1:
            return reading
        readers: list[Running] = []
        for each in reading:
            enough, target = each.read + MIN_COPIED_TOKENS, wanted(each.request)
            if not any(
                enough <= shared > other.read
                for other in readers
                if (shared := common(wanted(other.request), target))
            ):
                readers.append(each)
        return readers

    def _copy(self) -> None:
        """Copy prefixes that other slots hold, again if a copy may be another one's source."""
        while copies := self._copies():
            for running, tokens in copies:
                running.request.cached += tokens - running.read
                self.totals.cached_tokens += tokens - running.read
                running.read = tokens

    def _copies(self) -> list[tuple[Running, int]]:
        by_slot = {running.slot: running for running in self.running}
        held = [
            self._held(by_slot[slot]) if slot in by_slot else self._prefixes.kept[slot]
            for slot in range(self.engine.slots)
        ]
        copies = []
        for running in self._readers():
            tokens = max(common(each, wanted(running.request)) for each in held)
            if tokens >= running.read + MIN_COPIED_TOKENS:
                copies.append((running, tokens))
        return copies

    def _held(self, running: Running) -> Held:
        """What the slot of a request holds that another one may reuse."""
        request = running.request
        tokens = running.read
        if self.engine.keeps_answers and running.first_step >= 0:
            # The last token that was chosen is not read yet.
            tokens += len(self.step_ends) - 1 - running.first_step
        return Held(request.conversation, tokens, request.shared) if tokens else NOTHING

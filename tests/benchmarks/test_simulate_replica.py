"""A simulated replica takes the steps that the engine's own scheduler takes."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from adept_fast import Runtime
from adept_fast.engine.prefix_cache import MIN_COPIED_TOKENS, PrefixCache
from adept_fast.engine.scheduler import Limits, QueueFullError, Scheduler
from adept_fast.engine.sequence import Request as RealRequest
from adept_fast.engine.sequence import Sequence
from adept_fast.model import PREFILL_CHUNK
from adept_fast.sampling import SamplingParams
from benchmarks.simulate import prefix, sources
from benchmarks.simulate.replica import Engine, Replica
from benchmarks.simulate.request import Request
from benchmarks.simulate.simulation import Setup, Simulation
from benchmarks.simulate.step_times import DecodePoint, PrefillPoint, StepTimes

FIRST_ID = 300  # of tokens of conversation 0; each conversation repeats one id
TIMES = StepTimes([DecodePoint(1, 1, 1, 1.0)], [PrefillPoint(1, 1, 0, 1.0)])


@dataclass(frozen=True)
class Taken:
    """A step: parts of prompts (request, start, tokens), rows that decode, and requests that end."""

    chunk: list[tuple[int, int, int]]
    rows: int
    ended: list[int]


def ids_of(request: Request, count: int) -> list[int]:
    shared = [*range(10, 10 + request.shared)]
    return (shared + [FIRST_ID + request.conversation] * count)[:count]


def real_steps(
    engine: Engine, arrivals: list[list[Request]], tokenizer: object
) -> tuple[list[Taken], list[int], int]:
    """What the engine's scheduler decides, tokens that were cached, and how many requests it refused."""
    limits = Limits(engine.chunk_tokens, engine.step_tokens, engine.max_waiting)
    scheduler = Scheduler(engine.slots, limits, PrefixCache(engine.slots) if engine.prefix_cache else None)
    sequences: list[Sequence] = []
    taken: list[Taken] = []
    refused = 0
    for came in [*arrivals, *[[] for _ in range(2000)]]:
        for request in came:
            params = SamplingParams(temperature=0.0, max_new_tokens=request.answer_tokens, ignore_eos=True)
            real = RealRequest(ids_of(request, request.prompt_tokens), params)
            sequence = Sequence(real, tokenizer, 10_000, decoded_is_reusable=engine.keeps_answers)  # type: ignore[arg-type]
            try:
                scheduler.add([sequence])
                sequences.append(sequence)
            except QueueFullError:
                refused += 1
        if not scheduler.sequences():
            continue
        scheduler.retire()
        scheduler.admit()
        while copies := scheduler.copies():
            for copy in copies:
                scheduler.copied(copy)
        decoding = scheduler.decoding()
        chunk = scheduler.next_chunk()
        parts = [(sequences.index(each), part.start, len(part.ids)) for each, part in chunk]  # type: ignore[arg-type]
        for each, part in chunk:
            each.prefilled(len(part.ids))
        for each, part in chunk:
            assert isinstance(each, Sequence)
            if part.end == len(each.prompt_ids):
                each.accept([each.prompt_ids[-1]], [None])
        for each in decoding:
            each.accept_step([each.prompt_ids[-1]], [None], 0)
        ended = [sequences.index(each) for each in scheduler.retire()]  # type: ignore[arg-type]
        taken.append(Taken(parts, len(decoding), ended))
    assert all(sequence.is_finished for sequence in sequences)
    return taken, [each.generation(0.0).timings.cached_tokens for each in sequences], refused


def simulated_steps(engine: Engine, arrivals: list[list[Request]]) -> tuple[list[Taken], list[int], int]:
    replica, accepted, taken, refused = Replica(engine, TIMES), [], [], 0
    for came in [*arrivals, *[[] for _ in range(2000)]]:
        for request in came:
            if replica.add(request):
                accepted.append(request)
            else:
                refused += 1
        if replica.begin() is None:
            continue
        step = replica.step
        assert step is not None
        numbers = {id(request): at for at, request in enumerate(accepted)}
        parts = [(numbers[id(each.request)], each.read, tokens) for each, tokens in step.chunk]
        ended = replica.end(float(len(taken)))
        taken.append(Taken(parts, step.rows, [numbers[id(request)] for request in ended]))
    return taken, [request.cached for request in accepted], refused


REQUESTS = st.builds(
    lambda prompt, answer, conversation: (prompt, answer, conversation),
    st.integers(1, 70),
    st.integers(1, 12),
    st.integers(0, 4),
)
ENGINES = st.builds(
    Engine,
    slots=st.integers(1, 4),
    max_waiting=st.sampled_from([None, 0, 1, 3]),
    chunk_tokens=st.integers(1, 90),
    step_tokens=st.integers(1, 40),
    prefix_cache=st.booleans(),
    keeps_answers=st.booleans(),
)


@settings(max_examples=300, deadline=None)
@given(engine=ENGINES, came=st.lists(st.lists(REQUESTS, max_size=3), max_size=12), shared=st.integers(0, 50))
def test_it_takes_the_steps_of_the_engines_scheduler(
    demo: Runtime, engine: Engine, came: list[list[tuple[int, int, int]]], shared: int
) -> None:
    """The same parts of prompts in each step, the same rows, and the same prefixes found."""

    def requests() -> list[list[Request]]:
        return [
            [
                Request(shared + prompt, answer, conversation=which, shared=shared)
                for prompt, answer, which in group
            ]
            for group in came
        ]

    assert simulated_steps(engine, requests()) == real_steps(engine, requests(), demo.tokenizer)


def test_numbers_of_the_engine_are_the_engines() -> None:
    assert prefix.MIN_COPIED_TOKENS == MIN_COPIED_TOKENS
    assert sources.CHUNK_TOKENS == PREFILL_CHUNK


def test_the_next_step_waits_for_the_requests_that_came_during_the_last() -> None:
    times = StepTimes(TIMES.decode, TIMES.prefill, request_seconds={1: 0.25})
    first, second = Request(1, 4), Request(1, 1, at=0.5)
    simulation = Simulation(Setup(Engine(slots=1), times), [[first], [second]])
    simulation.run()
    # A chunk and a step take 1 s each; second comes during the chunk, and waits for the slot.
    assert (first.first, first.ended) == (1.25, 1.25 + 3.25)
    assert second.ended == 5.5

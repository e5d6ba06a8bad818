"""The service: answers awaited on an event loop, while one thread steps the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from shared_runtime import one_thread_a_call as one_thread_a_call

from adept_fast import GenerationError, ParameterError, Request, Runtime, SamplingParams
from adept_fast.engine.scheduler import QueueFullError
from adept_fast.server.answering import Load, ServiceStoppingError
from adept_fast.server.service import Answer, Service

SLOTS, WAITING = 2, 2
PROMPT = [5, 6, 7]


@pytest.fixture
def runtime() -> Runtime:
    return Runtime.load(
        "demo",
        device="cpu",
        weights="int8",
        max_seq_len=256,
        max_batch_size=SLOTS,
        max_waiting=WAITING,
        progress=False,
    )


def request(tokens: int = 5, prompt: list[int] = PROMPT) -> Request:
    return Request(prompt, SamplingParams(max_new_tokens=tokens, ignore_eos=True))


def serve(runtime: Runtime, use: Callable[[Service], Awaitable[None]]) -> Service:
    """Run a coroutine with a started service, then stop the service."""
    service = Service(runtime)

    async def run() -> None:
        service.start()
        await asyncio.wait_for(use(service), 60)
        await asyncio.wait_for(service.stop(0), 60)

    asyncio.run(run())
    return service


async def read(answer: Answer) -> list[int]:
    return [token_id async for event in answer for token_id in event.token_ids]


def test_answers_are_those_of_the_runtime(runtime: Runtime) -> None:
    (expected,) = runtime.generate([PROMPT], max_new_tokens=20, ignore_eos=True)

    async def use(service: Service) -> None:
        answers = service.submit([request(20) for _ in range(SLOTS + WAITING)])
        found = await asyncio.gather(*map(read, answers))
        assert found == [expected.token_ids] * len(answers)
        assert {answer.generation().text for answer in answers} == {expected.text}
        assert service.load() == Load(SLOTS, 0, 0)

    serve(runtime, use)


def test_events_come_before_the_end(runtime: Runtime) -> None:
    """Also if the coroutine is ready only after the whole text is."""

    async def use(service: Service) -> None:
        slow, quick = service.submit([request(200), request(3)])
        events = [event async for event in quick]
        assert [event.finish_reason for event in events] == [None, None, "length"]
        assert not slow.is_finished
        while not slow.is_finished:
            await asyncio.sleep(0)
        assert len(await read(slow)) == 200
        assert await read(slow) == []

    serve(runtime, use)


def test_a_cancelled_answer_frees_its_slot(runtime: Runtime) -> None:
    async def use(service: Service) -> None:
        running = service.submit([request(250), request(250)])
        await anext(running[0])
        queued = service.submit([request(2)])[0]
        gone = service.submit([request(2)])[0]
        assert [answer.has_begun for answer in (running[0], queued)] == [True, False]
        gone.cancel()
        running[0].cancel()
        assert len(await read(queued)) == 2
        assert [event.finish_reason async for event in gone] == ["interrupted"]
        running[1].cancel()
        await read(running[1])
        assert running[1].generation().finish_reason == "interrupted"
        assert service.load() == Load(SLOTS, 0, 0)

    serve(runtime, use)


def test_what_cannot_be_queued_is_refused(runtime: Runtime) -> None:
    async def use(service: Service) -> None:
        with pytest.raises(ParameterError, match="prompt has no tokens"):
            service.submit([request(), request(prompt=[])])
        with pytest.raises(ParameterError, match="came at once"):
            service.submit([request() for _ in range(SLOTS + WAITING + 1)])
        assert service.load() == Load(SLOTS, 0, 0)
        answers = service.submit([request(200) for _ in range(SLOTS + WAITING)])
        with pytest.raises(QueueFullError) as full:
            service.submit([request()])
        assert full.value.retry_after_seconds == pytest.approx(
            1 / (SLOTS + WAITING), rel=0.5
        )  # none ended yet
        for answer in answers:
            answer.cancel()
            await read(answer)
        assert [answer.is_finished for answer in service.submit([request(0)])] == [True]

    serve(runtime, use)


def test_an_error_of_one_answer_leaves_the_others(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    step = runtime.engine.runner.model.decode_step
    broken_slots: list[int] = []

    def damaged(ids, slots, *rest):  # type: ignore[no-untyped-def]
        logits = step(ids, slots, *rest)
        for slot in broken_slots:
            logits[slots == slot] = float("nan")
        return logits

    monkeypatch.setattr(runtime.engine.runner.model, "decode_step", damaged)

    async def use(service: Service) -> None:
        broken, whole = service.submit([request(200), request(20)])
        await anext(broken)
        broken_slots.append(broken._sequence.slot)
        with pytest.raises(GenerationError, match="NaN"):
            await read(broken)
        broken_slots.clear()
        assert len(await read(whole)) == 20
        assert service.failure is None

    serve(runtime, use)


def test_a_stopping_service_finishes_what_it_has(runtime: Runtime) -> None:
    async def run() -> None:
        service = Service(runtime)
        assert not service.is_ready
        service.start()
        assert service.is_ready
        answers = service.submit([request(30) for _ in range(SLOTS + WAITING)])
        stopping = asyncio.create_task(service.stop(60))
        await asyncio.sleep(0)
        assert not service.is_ready
        with pytest.raises(ServiceStoppingError):
            service.submit([request()])
        assert [len(await read(answer)) for answer in answers] == [30] * len(answers)
        await asyncio.wait_for(stopping, 60)

    asyncio.run(run())
    assert runtime.engine.counts() == (0, 0)


def test_a_stopping_service_ends_what_takes_too_long(runtime: Runtime) -> None:
    async def run() -> None:
        service = Service(runtime)
        service.start()
        answers = service.submit([request(250) for _ in range(SLOTS + 1)])
        await anext(answers[0])
        await asyncio.wait_for(service.stop(0), 60)
        assert {answer.generation().finish_reason for answer in answers} == {"interrupted"}

    asyncio.run(run())
    assert runtime.engine.counts() == (0, 0)


def test_the_death_of_the_engine_fails_every_answer(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        died = asyncio.Event()
        service = Service(runtime, on_failure=died.set)
        service.start()
        answers = service.submit([request(200) for _ in range(SLOTS + 1)])
        await anext(answers[0])

        def fail(*_: object) -> None:
            raise RuntimeError("the device is gone")

        monkeypatch.setattr(runtime.engine.runner.model, "decode_step", fail)
        for answer in answers:
            with pytest.raises(RuntimeError, match="the engine has ended: the device is gone"):
                await read(answer)
        await asyncio.wait_for(died.wait(), 60)
        assert isinstance(service.failure, RuntimeError)
        assert not service.is_ready
        with pytest.raises(ServiceStoppingError):
            service.submit([request()])
        await asyncio.wait_for(service.stop(60), 60)

    asyncio.run(run())

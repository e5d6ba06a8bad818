"""The load on servers: what is sent, how answers are read, and the figures made of them."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from benchmarks.serving.client import Load, Observed, WarmUpError, read_event
from benchmarks.serving.event_stream import AnswerError, EventStream
from benchmarks.serving.figures import LoadError, counts, load_figures, pause_figures
from benchmarks.serving.plan import (
    DECODING,
    QUIET,
    READING,
    Maker,
    Prompts,
    Shape,
    Span,
    arrivals,
)

EVENTS = ['{"a": 1}', "two\nlines", "é", "[DONE]"]
BODY = (
    'data: {"a": 1}\n\n: a comment\r\n\r\nevent: x\ndata: two\ndata:lines\n\ndata: é\r\n\r\ndata: [DONE]\n\n'
)


def in_chunks(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x;name=value\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


HEADER = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
ANSWERS = {
    "chunks": HEADER + b"transfer-encoding: Chunked\r\n\r\n" + in_chunks(BODY.encode(), 7),
    "length": HEADER + b"CONTENT-LENGTH:%d\r\n\r\n" % len(BODY.encode()) + BODY.encode(),
    "neither": HEADER + b"\r\n" + BODY.encode(),
}


@pytest.mark.parametrize("step", [1, 2, 3, 50, 10_000])
@pytest.mark.parametrize("kind", ANSWERS)
def test_events_are_the_same_wherever_an_answer_is_cut(kind: str, step: int) -> None:
    stream, answer, events = EventStream(), ANSWERS[kind], []
    for at in range(0, len(answer), step):
        assert events == EVENTS[: len(events)]
        events += stream.feed(answer[at : at + step])
    assert events == EVENTS
    assert stream.status == 200
    assert stream.is_complete == (kind != "neither")
    cut = EventStream()
    cut.feed(answer[:-5])
    assert not cut.is_complete


def test_an_event_is_returned_with_the_piece_that_completes_it() -> None:
    stream = EventStream()
    stream.feed(HEADER + b"\r\n")
    assert stream.feed(b"data: 1\n") == []
    assert stream.feed(b"\ndata: 2") == ["1"]
    assert stream.feed(b"\n\ndata: 3\n\n") == ["2", "3"]


def test_the_body_of_an_error_is_kept() -> None:
    stream = EventStream()
    body = b'data: no event\n\n{"error": 1}'
    header = b"HTTP/1.1 429 Too Many Requests\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert stream.feed(header + in_chunks(body, 5)) == []
    assert (stream.status, stream.body, stream.is_complete) == (429, body, True)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"SSH-2.0-x\r\n\r\n", "expected HTTP/1.1 and a status"),
        (b"HTTP/1.1\r\n\r\n", "expected HTTP/1.1 and a status"),
        (b"x" * (1 << 16 | 1), "over 65536 bytes"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "expected hexadecimal"),
    ],
)
def test_what_is_no_answer_is_refused(answer: bytes, reason: str) -> None:
    with pytest.raises(AnswerError, match=reason):
        EventStream().feed(answer)


def prompts() -> Prompts:
    return Prompts.of_pieces(["▁the", "▁capital", "▁of", "▁house", "▁Paris", "ird", "▁piece123", "▁city"])


def maker(seed: int = 3, **extra: Any) -> Maker:
    return Maker(prompts(), Shape(4, 40, 8), seed, extra)


def test_prompts_are_words_that_are_one_token() -> None:
    assert prompts().words == ["the", "city"]
    with pytest.raises(ValueError, match="no piece that is a whole word"):
        Prompts.of_pieces(["▁Paris", "x"])


def test_the_same_seed_makes_the_same_load_and_another_seed_another() -> None:
    one, again, other = (maker(seed).closed(3, 1.5) for seed in (3, 3, 4))
    assert one == again != other
    assert [{request["at"] for request in client} for client in one] == [{0.0}, {0.5}, {1.0}]
    lengths = [len(request["body"]["prompt"].split()) for client in one for request in client]
    assert set(lengths) == set(range(4, 41))
    assert statistics.median(lengths) == pytest.approx((4 * 41) ** 0.5, rel=0.15)  # the logarithm is even
    assert maker(best=1).warm_up(1)[0] == {
        **maker().warm_up(1)[0],
        "best": 1,
        "max_tokens": 8,
        "temperature": 0,
        "stream": True,
    }


def test_arrivals_are_those_of_a_poisson_process() -> None:
    times = arrivals(50.0, 400.0, random.Random(1))
    assert times == sorted(times)
    assert 0 < times[0] < times[-1] < 400
    gaps = np.diff(times)
    # 20000 expected: the mean of so many is within 3% in all but one of 10000 seeds.
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.04)
    assert np.median(gaps) == pytest.approx(np.log(2) / 50, rel=0.04)  # as of the exponential distribution
    per_second = np.bincount(np.array(times).astype(int), minlength=400)
    assert per_second.var() == pytest.approx(50, rel=0.25)


def test_a_long_prompt_comes_every_second_beside_those_who_decode() -> None:
    span = Span(2.0, 6.0, 9.0)
    *others, last = maker().long(4, 400, span, 1.0, 99)
    assert len(others) == 3
    assert {request["name"] for client in others for request in client} == {DECODING}
    assert {request["body"]["max_tokens"] for client in others for request in client} == {99}
    assert [request["at"] for request in last] == [2.5, 3.5, 4.5, 5.5]
    assert {len(request["body"]["prompt"].split()) for request in last} == {400}
    assert {request["name"] for request in last} == {READING}
    assert maker().long(4, 0, span, 1.0, 99) == others  # without it the others do the same
    assert QUIET != READING


def observed(
    name: str = "x", sent: float = 0.0, arrivals: tuple[float, ...] = (), **more: Any
) -> dict[str, Any]:
    first = arrivals[0] if arrivals else None
    values = dict.fromkeys(("ended", "prompt_tokens", "completion_tokens", "finish_reason", "error"))
    return values | {"name": name, "sent": sent, "first": first, "arrivals": list(arrivals)} | more


EDGES = [{"at": 2.0, "client": 0.5, "server": 10.0}, {"at": 6.0, "client": 0.7, "server": 17.0}]
WINDOW = Span(2.0, 6.0, 9.0)


def test_figures_are_of_what_arrives_in_the_window() -> None:
    requests = [
        observed(sent=0.0, arrivals=(1.0, 1.9, 2.0, 3.0), ended=3.0, completion_tokens=8, prompt_tokens=10),
        observed(sent=3.0, arrivals=(3.5, 4.0, 5.9), ended=5.9, completion_tokens=6, prompt_tokens=20),
        observed(sent=4.0, arrivals=(5.0, 6.0)),
        observed(sent=5.0),
    ]
    figures = load_figures({"requests": requests, "edges": EDGES}, WINDOW)
    # 2.0, 3.0, 3.5, 4.0, 5.9 and 5.0, each of 2 tokens: 14 tokens in the 7 events of answers that ended.
    assert figures["tokens_per_second"] == pytest.approx(6 * 2 / 4)
    assert figures["time_to_first_token_seconds_p50"] == pytest.approx(0.75)  # of 0.5 and 1.0
    between = [0.1, 1.0, 0.5, 1.9]
    assert figures["seconds_between_tokens_p50"] == pytest.approx(statistics.median(between))
    assert figures["seconds_between_tokens_p99"] == pytest.approx(1.0 + (1.9 - 1.0) * 0.97)
    assert figures["end_to_end_seconds_p50"] == pytest.approx((3.0 + 2.9) / 2)
    assert figures["answers_per_second"] == pytest.approx(0.5)
    assert figures["client_cores"] == pytest.approx(0.05)
    assert figures["server_cores"] == pytest.approx(1.75)
    assert counts(requests) == {"requests": 4, "cut": 2, "mean_prompt_tokens": 15, "tokens_per_event": 2.0}


def test_a_pause_is_what_overlaps_the_reading_of_a_long_prompt() -> None:
    steady = tuple(2.0 + 0.1 * at for at in range(20))  # to 3.9
    requests = [
        observed(DECODING, arrivals=(*steady, 4.5, 4.6, 4.7)),
        observed(READING, sent=3.95, arrivals=(4.45,)),
        observed(READING, sent=5.9),  # not read in time
    ]
    figures = pause_figures({"requests": requests, "edges": EDGES}, WINDOW)
    assert figures["quiet_median"] == pytest.approx(0.1)
    assert figures["while_reading_p99"] == figures["while_reading_max"] == pytest.approx(0.6)
    assert figures["p99_over_quiet_median"] == pytest.approx(6.0)
    assert figures["p99_over_median"] == pytest.approx(1.0)  # of the one gap while the prompt was read
    assert figures["long_prompt_seconds"] == pytest.approx(0.5)
    assert figures["long_prompts"] == 1
    alone = pause_figures({"requests": requests[:1], "edges": EDGES}, WINDOW)
    assert "while_reading_p99" not in alone
    for name in ("p99_over_median", "p99_over_quiet_median"):
        assert alone[name] == pytest.approx(np.percentile([0.1] * 21 + [0.6], 99) / 0.1)
    busy = [observed(DECODING, arrivals=(3.0, 4.0)), observed(READING, sent=2.5, arrivals=(5.0,))]
    assert "quiet_median" not in pause_figures({"requests": busy, "edges": EDGES}, WINDOW)
    bursts = [observed(DECODING, arrivals=(3.0, 3.0, 3.0, 4.0))]
    assert "p99_over_median" not in pause_figures({"requests": bursts, "edges": EDGES}, WINDOW)


@pytest.mark.parametrize(
    ("requests", "reason"),
    [
        (
            [observed(error="status 500: x"), observed()],
            "1 of 2 requests failed, the first with status 500: x",
        ),
        ([], "no request was sent"),
        ([observed(arrivals=(1.0, 7.0))], "no token .*arrived in the window"),
    ],
)
@pytest.mark.parametrize("figures", [load_figures, pause_figures])
def test_a_load_that_failed_has_no_figures(
    figures: Callable[..., Any], requests: list[dict[str, Any]], reason: str
) -> None:
    with pytest.raises(LoadError, match=reason):
        figures({"requests": requests, "edges": EDGES}, WINDOW)


def test_events_of_completions_and_of_chats_are_read() -> None:
    seen = Observed("x", 0.0)
    read_event({"choices": [{"text": "", "finish_reason": None}]}, 1.0, seen)
    assert (seen.first, seen.arrivals) == (None, [])
    read_event({"choices": [{"text": "a"}]}, 2.0, seen)
    read_event({"choices": [{"delta": {"content": "b"}}]}, 3.0, seen)
    read_event({"choices": [{"delta": {}, "finish_reason": "length"}]}, 4.0, seen)
    read_event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}, 5.0, seen)
    assert (seen.first, seen.arrivals, seen.finish_reason) == (2.0, [2.0, 3.0], "length")
    assert (seen.prompt_tokens, seen.completion_tokens) == (3, 2)
    read_event({"error": {"message": "no"}}, 6.0, seen)
    assert seen.error == '{"message": "no"}'
    assert isinstance(seen.error, str)


Answer = Callable[[asyncio.StreamWriter, dict[str, Any]], Awaitable[None]]


def run_load(answer: Answer, **plan: Any) -> dict[str, Any]:
    """The load on a server whose answers ``answer`` writes."""

    handlers: list[asyncio.Task[Any]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.append(task := asyncio.current_task())
        assert task is not None
        header = await reader.readuntil(b"\r\n\r\n")
        (length,) = (
            int(line.split(b":")[1]) for line in header.split(b"\r\n") if line.startswith(b"Content-L")
        )
        try:
            await answer(writer, json.loads(await reader.readexactly(length)))
        finally:
            writer.close()
            await writer.wait_closed()

    async def both() -> dict[str, Any]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        everything = {"host": "127.0.0.1", "ports": [port], "path": "/x", "warm_up": [], "pids": [], **plan}
        async with server:
            try:
                return await Load(everything).run()
            finally:
                for handler in handlers:
                    handler.cancel()
                await asyncio.wait(handlers)

    return asyncio.run(asyncio.wait_for(both(), 60))


def requests_of(*ids: int, at: float = 0.0) -> list[dict[str, Any]]:
    return [{"name": f"request {each}", "at": at, "body": {"id": each}} for each in ids]


def test_a_client_sends_the_next_request_when_the_last_is_answered() -> None:
    running: list[int] = []
    pairs: list[tuple[int, ...]] = []

    async def answer(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        running.append(body["id"])
        pairs.append(tuple(sorted(running)))
        writer.write(ANSWERS["chunks"].replace(b'{"a": 1}', b'{"a": 2}'))
        await writer.drain()
        running.remove(body["id"])

    clients = [requests_of(1, 2, 3), requests_of(10, 20, 30)]
    found = run_load(answer, clients=clients, begin=0.0, end=0.05, limit=30.0)
    assert not any(len({each < 10 for each in pair}) < len(pair) for pair in pairs)
    # The data of this server is no completion.
    assert all("JSONDecodeError" in request["error"] for request in found["requests"])
    assert [edge["at"] for edge in found["edges"]] == sorted(edge["at"] for edge in found["edges"])


def completion(*texts: str) -> bytes:
    events = [{"choices": [{"text": text}]} for text in texts]
    events += [{"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": len(texts)}}]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    return HEADER + b"Transfer-Encoding: chunked\r\n\r\n" + in_chunks(body.encode(), 11)


def test_answers_are_noted_and_those_that_hang_are_cut_at_the_limit() -> None:
    async def answer(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        text = completion("a", "b")
        hangs = body["id"] == 2
        writer.write(text[:-30] if hangs else text)
        await writer.drain()
        if hangs:
            await asyncio.Event().wait()

    found = run_load(answer, clients=[requests_of(1, 2, 3), requests_of(4)], begin=0.0, end=0.2, limit=0.3)
    requests = {each["name"]: each for each in found["requests"]}
    assert set(requests) == {"request 1", "request 2", "request 4"}  # 3 would be sent after the window
    for name, request in requests.items():
        assert request["error"] is None
        assert (request["ended"] is None) == (name == "request 2")
        assert len(request["arrivals"]) == 2
        assert request["sent"] < request["first"] == request["arrivals"][0]
    assert requests["request 1"]["completion_tokens"] == 2
    assert requests["request 1"]["sent"] < requests["request 2"]["sent"]


def test_a_server_that_cannot_be_warmed_up_is_named() -> None:
    async def answer(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        writer.write(b"HTTP/1.1 422 No\r\nContent-Length: 9\r\n\r\nunknown x")

    with pytest.raises(WarmUpError, match="did not answer a request to warm up: status 422: unknown x"):
        run_load(answer, clients=[], warm_up=[{"id": 1}], begin=0.0, end=0.1, limit=0.2)

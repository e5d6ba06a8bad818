"""Many clients at once against a server of the demo: each answer must be the one that it gets alone.

    python tests/soak.py --seconds 600 --clients 64

Clients send what a catalogue holds, with mixed lengths and settings. Some leave in the middle of an answer,
some send nonsense. Halfway the server is killed and started again on its port. At the end its slots are free,
its memory is what it was, and it ends in order.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from server_process import ServerProcess

from adept_fast import Runtime, SamplingParams

SLOTS, WAITING, SEED = 8, 56, 17
CONTEXT = 512
ARGUMENTS = [
    f"--batch-size={SLOTS}", f"--max-queue={WAITING}", f"--max-seq-len={CONTEXT}", "--step-tokens=24"
]  # fmt: skip
MEMORY_GROWTH_BYTES = 64 << 20  # what an allocator may keep
ANSWER_SECONDS = 120  # nothing takes that long

_TEXTS = (
    "Once upon a time",
    "human: What is the capital of Peru?\n\nadept:",
    "human: Tell me a story about a fox.\n\nadept: There was a fox.\n\nhuman: And then?\n\nadept:",
    "Humpty Dumpty sat on a wall. " * 12,
    "The quick brown fox jumps over the lazy dog, and 3 plus 4 is 7. " * 6,
    "ünïcödé 世界 🙂 ",
    "a",
)
_NONSENSE: tuple[tuple[str, str, bytes, int], ...] = (
    ("POST", "/v1/completions", b"{", 400),
    ("POST", "/v1/completions", b"[]", 400),
    ("POST", "/v1/completions", b'{"prompt": "a", "temperature": NaN}', 400),
    ("POST", "/v1/completions", b'{"prompt": "a", "max_tokens": -1}', 400),
    ("POST", "/v1/completions", b'{"prompt": [99999999]}', 400),
    ("POST", "/v1/completions", b'{"prompt": "a", "no_such_thing": 1}', 400),
    ("POST", "/v1/completions", b'{"prompt": ' + b"[" * 5000, 400),
    ("POST", "/v1/completions", b'{"model": "other", "prompt": "a"}', 404),
    ("POST", "/v1/chat/completions", b'{"messages": []}', 400),
    ("POST", "/v1/chat/completions", b'{"messages": [{"role": "nobody", "content": 1}]}', 400),
    ("POST", "/v1/completions", json.dumps({"prompt": "word " * 3000}).encode(), 400),
    ("GET", "/v1/completions", b"", 405),
    ("GET", "/no/such/path", b"", 404),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A completion, and the answer that it gets alone."""

    body: dict[str, Any]
    text: str
    finish_reason: str
    token_logprobs: list[float]


@dataclasses.dataclass
class Counts:
    """What happened."""

    answered: int = 0
    streamed: int = 0
    left: int = 0
    nonsense: int = 0
    refused: int = 0  # as the queue was full
    lost: int = 0  # as the server was killed
    cached_tokens: int = 0
    wrong: list[str] = dataclasses.field(default_factory=list)


def catalogue(count: int = 48) -> list[Case]:
    """Random requests and their answers by a Runtime of one slot that shares nothing."""
    runtime = Runtime.load("demo", device="cpu", max_seq_len=CONTEXT, prefix_cache=False, progress=False)
    draw = random.Random(SEED)
    return [_case(runtime, draw) for _ in range(count)]


def _case(runtime: Runtime, draw: random.Random) -> Case:
    prompt = draw.choice(_TEXTS)
    prompt = prompt[: draw.randrange(1, len(prompt) + 1)]
    settings: dict[str, Any] = {
        "temperature": draw.choice([0.0, 0.7, 1.5]),
        "top_p": draw.choice([1.0, 0.9]),
        "seed": draw.randrange(2**62),
        "stop": draw.choice([[], ["the", "\n\n"]]),
        "top_k": draw.choice([0, 5]),
        "min_p": draw.choice([0.0, 0.1]),
        "repetition_penalty": draw.choice([1.0, 1.2]),
        "frequency_penalty": draw.choice([0.0, 0.5]),
        "presence_penalty": draw.choice([0.0, -0.5]),
    }
    bias = draw.choice([{}, {30: 5.0, 40: -5.0}])
    tokens = draw.choice([1, 5, 20, 80])
    params = SamplingParams(max_new_tokens=tokens, logprobs=0, logit_bias=bias, **settings)
    alone = runtime.generate(prompt, params)
    return Case(
        {"prompt": prompt, "max_tokens": tokens, "logprobs": 0, "logit_bias": bias, **settings},
        alone.text,
        "stop" if alone.finish_reason == "eos" else alone.finish_reason,
        [entry.logprob for entry in alone.logprobs or []],
    )


class Clients:
    """The clients, until a time. An answer that differs is counted; a wait without end is an error."""

    def __init__(self, url: str, cases: list[Case], count: int) -> None:
        self.counts = Counts()
        self._cases = cases
        self._draws = [random.Random(f"{SEED}-{at}") for at in range(count)]
        limits = httpx.Limits(max_connections=None)
        self._http = httpx.AsyncClient(base_url=url, timeout=ANSWER_SECONDS, limits=limits)
        self._is_up = asyncio.Event()
        self._is_up.set()
        self._servers = 1  # so far

    async def run(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(self._client(draw, until) for draw in self._draws))

    def server_goes(self) -> None:
        """Clients lose what this server has not answered yet."""
        self._servers += 1
        self._is_up.clear()

    def server_comes(self) -> None:
        self._is_up.set()

    async def close(self) -> None:
        await self._http.aclose()

    async def _client(self, draw: random.Random, until: float) -> None:
        acts = [self._ask, self._stream, self._stream, self._leave, self._leave_unread, self._talk_nonsense]
        while time.monotonic() < until:
            await self._is_up.wait()
            server = self._servers
            try:
                await draw.choice(acts)(draw)
            except httpx.TransportError as error:
                if server == self._servers:
                    self.counts.wrong.append(f"{type(error).__name__}: {error}")
                self.counts.lost += 1

    async def _ask(self, draw: random.Random) -> None:
        case = draw.choice(self._cases)
        response = await self._http.post("/v1/completions", json=case.body)
        if await self._is_refused(response):
            return
        body = response.json()
        self._compare(case, body["choices"], body["usage"])

    async def _stream(self, draw: random.Random) -> None:
        case = draw.choice(self._cases)
        body = case.body | {"stream": True, "stream_options": {"include_usage": True}}
        async with self._http.stream("POST", "/v1/completions", json=body) as response:
            if await self._is_refused(response):
                return
            events = [line.removeprefix("data: ") async for line in response.aiter_lines() if line]
        if events[-1:] != ["[DONE]"]:
            self.counts.wrong.append(f"a stream ended with {events[-1:]}")
            return
        chunks = [json.loads(event) for event in events[:-1]]
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        whole = {
            "text": "".join(choice["text"] for choice in choices),
            "finish_reason": choices[-1]["finish_reason"],
            "logprobs": {
                "token_logprobs": [
                    logprob
                    for choice in choices
                    for logprob in (choice.get("logprobs") or {}).get("token_logprobs", [])
                ]
            },
        }
        self.counts.streamed += 1
        self._compare(case, [whole], chunks[-1]["usage"])

    async def _leave(self, draw: random.Random) -> None:
        """In the middle of a stream."""
        body = draw.choice(self._cases).body | {"stream": True, "max_tokens": 400, "n": 2}
        async with self._http.stream("POST", "/v1/completions", json=body) as response:
            if await self._is_refused(response):
                return
            left = draw.randrange(5)
            async for _ in response.aiter_lines():
                left -= 1
                if left < 0:
                    break
        self.counts.left += 1

    async def _leave_unread(self, draw: random.Random) -> None:
        """Before the answer has come."""
        body = draw.choice(self._cases).body | {"max_tokens": 400}
        asking = asyncio.ensure_future(self._http.post("/v1/completions", json=body))
        done, _ = await asyncio.wait({asking}, timeout=draw.random() / 10)
        if done:
            await self._is_refused(asking.result())
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        self.counts.left += 1

    async def _talk_nonsense(self, draw: random.Random) -> None:
        method, path, content, status = draw.choice(_NONSENSE)
        headers = {"Content-Type": "application/json"}
        response = await self._http.request(method, path, content=content, headers=headers)
        if response.status_code != status or not response.json()["error"]["message"]:
            self.counts.wrong.append(f"{content[:80]!r} → {response.status_code} {response.text[:200]}")
        self.counts.nonsense += 1

    async def _is_refused(self, response: httpx.Response) -> bool:
        if response.status_code == 429:
            self.counts.refused += 1
            await asyncio.sleep(float(response.headers["Retry-After"]))
            return True
        if response.status_code != 200:
            self.counts.wrong.append(f"status {response.status_code}")
            return True
        return False

    def _compare(self, case: Case, choices: list[dict[str, Any]], usage: dict[str, Any]) -> None:
        (choice,) = choices
        found = Case(case.body, choice["text"], choice["finish_reason"], choice["logprobs"]["token_logprobs"])
        if found != case:
            self.counts.wrong.append(f"{case} → {found}")
        self.counts.answered += 1
        self.counts.cached_tokens += usage["prompt_tokens_details"]["cached_tokens"]


def resident_bytes(process_id: int) -> int:
    status = Path(f"/proc/{process_id}/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def gauges(url: str) -> dict[str, float]:
    """The values of the metrics without labels."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return {
        name: float(value)
        for name, value in (line.split(" ", 1) for line in lines if line[0] != "#" and "{" not in line)
    }


async def idle(url: str) -> None:
    """Wait until no request has a slot or waits for one."""
    while (now := gauges(url))["adept_fast_answers_running"] or now["adept_fast_answers_waiting"]:
        await asyncio.sleep(0.05)


async def soak(seconds: float, clients: int) -> Counts:
    """Raises AssertionError if memory or slots are lost, or the server does not end in order."""
    cases = catalogue()
    with ServerProcess(*ARGUMENTS) as first:
        crowd = Clients(first.url, cases, clients)
        await crowd.run(seconds / 4)
        await asyncio.wait_for(idle(first.url), ANSWER_SECONDS)
        before = resident_bytes(first.process_id)
        await crowd.run(seconds / 4)
        await asyncio.wait_for(idle(first.url), ANSWER_SECONDS)
        grown = resident_bytes(first.process_id) - before
        assert grown < MEMORY_GROWTH_BYTES, f"the server grew by {grown} bytes"
        running = asyncio.create_task(crowd.run(seconds / 2))
        await asyncio.sleep(seconds / 16)
        crowd.server_goes()
        first.signal(signal.SIGKILL)
        first.exit_code()
    with ServerProcess(*ARGUMENTS, port=first.port) as second:
        crowd.server_comes()
        await running
        await asyncio.wait_for(idle(second.url), ANSWER_SECONDS)
        second.signal(signal.SIGTERM)
        assert second.exit_code() == 0, second.stderr()
    await crowd.close()
    return crowd.counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=64)
    options = parser.parse_args()
    counts = asyncio.run(soak(options.seconds, options.clients))
    sys.stdout.write(f"{dataclasses.replace(counts, wrong=counts.wrong[:20])}\n")
    sys.exit(bool(counts.wrong))


if __name__ == "__main__":
    main()

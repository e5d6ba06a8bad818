"""``adept-fast serve`` as a process of its own, on a free port of this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

import adept_fast

ROOT = Path(adept_fast.__file__).resolve().parents[1]
SECONDS = 120  # to wait for what must happen; nothing takes that long

# Before the program: a step takes as long as that of a large model, so answers still run when a test goes on.
SLOW_MODEL = """
import time
from adept_fast.engine.engine import Engine

def slow(step):
    def slow_step(engine):
        time.sleep(0.02)
        return step(engine)
    return slow_step

Engine.step = slow(Engine.step)
"""
# Before the program: from its 20th step on, the engine waits for a file.
HELD_ENGINE = """
import itertools, os, time
from adept_fast.engine.engine import Engine

def held(step):
    numbers = itertools.count()
    def held_step(engine):
        if next(numbers) >= 20:
            while not os.path.exists({path!r}):
                time.sleep(0.005)
        return step(engine)
    return held_step

Engine.step = held(Engine.step)
"""
# Before the program: the engine fails once a file is there.
FAILING_ENGINE = """
import os
from adept_fast.engine.engine import Engine

def failing(step):
    def failing_step(engine):
        if os.path.exists({path!r}):
            raise RuntimeError("the device is lost")
        return step(engine)
    return failing_step

Engine.step = failing(Engine.step)
"""
_MAIN = "from adept_fast.commands.cli import main\nmain(prog_name='adept-fast')\n"


class ServerProcess:
    """Runs while it is entered; the end of the block kills it, if it still does.

    Args:
        before: a program that runs before the command line, in the same process.

    Attributes:
        url: of the server.
        ready: the line that it printed.
    """

    def __init__(self, *arguments: str, before: str = "", port: int = 0, **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", before + _MAIN, "serve", "--port", str(port), *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._stderr: list[str] = []
        assert self._process.stderr is not None
        self._reader = threading.Thread(target=self._stderr.extend, args=[self._process.stderr], daemon=True)
        self._reader.start()

    def __enter__(self) -> ServerProcess:
        assert self._process.stdout is not None
        self.ready = self._process.stdout.readline()
        assert self.ready, self.stderr()
        self.url = self.ready.split()[-1]
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(SECONDS)
        self._reader.join(SECONDS)
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def process_id(self) -> int:
        return self._process.pid

    def client(self, **settings: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=SECONDS, **settings)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def exit_code(self) -> int:
        """Wait for its end."""
        return self._process.wait(SECONDS)

    def stderr(self) -> str:
        """All it wrote there; waits for its end."""
        self._process.wait(SECONDS)
        self._reader.join(SECONDS)
        return "".join(self._stderr)


def completion(max_tokens: int, **fields: object) -> dict[str, object]:
    """The body of a completion that goes on to max_tokens."""
    return {
        "model": "demo",
        "prompt": "Once upon a time",
        "max_tokens": max_tokens,
        "ignore_eos": True,
        **fields,
    }


def data_of(line: str) -> Any:
    """The data of a line of an event stream; None if it has none."""
    data = line.removeprefix("data: ")
    return None if data in (line, "[DONE]") else json.loads(data)

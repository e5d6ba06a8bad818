"""The servers that are compared: how each is started, and its process.

``adept-fast``
    ours, ``adept-fast serve``
``transformers``
    ``transformers serve`` with continuous batching, which runs Persimmon itself. Its cache is limited in
    blocks: left alone it takes most of the memory. In an environment of its own:
    ``pip install "transformers[serving]"``
``llama-cpp-python``
    ``python -m llama_cpp.server``, which answers one request at a time and is told not to cut an answer off
    when the next request comes: ``CMAKE_ARGS="-DGGML_NATIVE=ON" pip install "llama-cpp-python[server]" gguf
    torch safetensors --no-binary llama-cpp-python``
``llama-server``
    llama.cpp's own server, with a slot for each client and continuous batching; it is built from the sources
    in llama-cpp-python's archive, so both have the same kernels

Both of llama.cpp serve Nemotron of equal shapes (see benchmarks.baselines.nemotron_gguf).
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving.client import processor_seconds
from benchmarks.workers import FLOATS, OURS, ROOT, AbsentError, environment, settings_of

HOST = "127.0.0.1"
START_SECONDS, STOP_SECONDS = 180.0, 20.0
LOG_LINES = 5  # of a server that ended, in a message
GGUF_FORMATS = {"float16": "F16", "bfloat16": "BF16"}
LLAMA_CPP_PYTHON, LLAMA_SERVER = "llama-cpp-python", "llama-server"
_CACHE_BLOCK = 256  # tokens of a block of transformers' cache
_IDLE_PROBE_SECONDS, _IDLE_SHARE = 0.3, 0.1


@dataclass(frozen=True)
class Setting:
    """The same for every server. ``context``: tokens that one request may have."""

    checkpoint: Path
    format: str
    threads: int
    clients: int
    context: int


@dataclass(frozen=True)
class Start:
    """What starts a server. ``program`` may be an interpreter; ``python`` is one that can write GGUF."""

    program: str
    python: str
    port: int
    setting: Setting


@dataclass(frozen=True)
class Kind:
    """A server. ``ready`` is a path that answers 200 when it is; ``extra`` goes into every request."""

    formats: tuple[str, ...]
    command: Callable[[Start], list[str]]
    ready: str
    extra: Callable[[Setting], dict[str, Any]] = lambda setting: {}
    packages: tuple[str, ...] = ()


def _adept_fast(start: Start) -> list[str]:
    setting = start.setting
    return [
        *(start.program, "-m", "adept_fast", "serve", "--host", HOST, "--port", str(start.port)),
        *("--checkpoint", str(setting.checkpoint), "--device", "cpu", "--dtype", setting.format),
        *("--max-seq-len", str(setting.context), "--batch-size", str(setting.clients)),
    ]


def _transformers(start: Start) -> list[str]:
    setting = start.setting
    blocks = setting.clients * -(-setting.context // _CACHE_BLOCK)
    return [
        *(start.program, "-m", "transformers.cli.transformers", "serve", str(setting.checkpoint)),
        *("--host", HOST, "--port", str(start.port), "--device", "cpu", "--dtype", setting.format),
        *("--continuous-batching", "--cb-num-blocks", str(blocks), "--cb-max-batch-tokens", "512"),
    ]


def _llama_cpp_python(start: Start) -> list[str]:
    setting = start.setting
    return [
        *(start.program, "-m", "llama_cpp.server", "--model", gguf(start.python, setting)),
        *("--host", HOST, "--port", str(start.port), "--n_ctx", str(setting.context)),
        *("--n_threads", str(setting.threads), "--n_threads_batch", str(setting.threads)),
        *("--interrupt_requests", "false", "--logits_all", "false"),
    ]


def _llama_server(start: Start) -> list[str]:
    setting = start.setting
    return [
        *(start.program, "--model", gguf(start.python, setting), "--host", HOST, "--port", str(start.port)),
        *("--parallel", str(setting.clients), "--cont-batching"),
        *("--ctx-size", str(setting.context * setting.clients)),
        *("--threads", str(setting.threads), "--threads-batch", str(setting.threads)),
    ]


def gguf(python: str, setting: Setting) -> str:
    """The path of the checkpoint as Nemotron; an interpreter with the package gguf writes it."""
    command = [python, "-m", "benchmarks.baselines.nemotron_gguf"]
    done = subprocess.run(
        [*command, str(setting.checkpoint), GGUF_FORMATS[setting.format]],
        env=os.environ | environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise AbsentError("the checkpoint could not be written as GGUF")
    return done.stdout.strip()


KINDS = {
    OURS: Kind(
        FLOATS,
        _adept_fast,
        "/health",
        lambda setting: {"model": setting.checkpoint.name},
        packages=("torch", "fastapi", "uvicorn"),
    ),
    "transformers": Kind(
        FLOATS, _transformers, "/health", packages=("transformers", "torch", "fastapi", "uvicorn")
    ),
    LLAMA_CPP_PYTHON: Kind(
        tuple(GGUF_FORMATS),
        _llama_cpp_python,
        "/v1/models",
        packages=("llama-cpp-python", "fastapi", "uvicorn"),
    ),
    LLAMA_SERVER: Kind(tuple(GGUF_FORMATS), _llama_server, "/health", lambda setting: {"ignore_eos": True}),
}


@dataclass(frozen=True)
class ServerVariant:
    """A server and the format of its weights: ``transformers:bfloat16``."""

    name: str
    format: str

    def __str__(self) -> str:
        return f"{self.name}:{self.format}"

    @classmethod
    def parse(cls, text: str) -> ServerVariant:
        """Raises ValueError."""
        name, _, format = text.partition(":")
        if name not in KINDS or format not in KINDS[name].formats:
            known = ", ".join(f"{name}:{'|'.join(kind.formats)}" for name, kind in KINDS.items())
            raise ValueError(f"{text!r} is no server and format; expected one of {known}")
        return cls(name, format)

    @property
    def kind(self) -> Kind:
        return KINDS[self.name]


class Server:
    """The process of a server. While others are measured it is stopped, so it takes no processor time.

    Raises AbsentError if there is no such program, or it ends or is not ready in time.
    """

    def __init__(
        self, variant: ServerVariant, programs: Mapping[str, str], setting: Setting, folder: Path
    ) -> None:
        self.variant, self.setting, self.port = variant, setting, free_port()
        self._program = program_of(variant.name, programs)
        python = program_of(LLAMA_CPP_PYTHON, programs)
        self.command = variant.kind.command(Start(self._program, python, self.port, setting))
        self._log = folder / f"{variant.name}-{variant.format}.log"
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=os.environ | environment() | settings_of(setting.threads),
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
        except AbsentError:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def versions(self) -> dict[str, str]:
        """Of its packages, as its interpreter finds them, or what the program says of itself."""
        packages = self.variant.kind.packages
        if not packages:
            done = subprocess.run([self._program, "--version"], capture_output=True, text=True, check=False)
            return {self.variant.name: (done.stderr or done.stdout).strip().partition("\n")[0]}
        script = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
        done = subprocess.run(
            [self._program, "-c", script, *packages], capture_output=True, text=True, check=True
        )
        return dict(zip(packages, done.stdout.split(), strict=True))

    def wait_until_idle(self, seconds: float) -> None:
        """Until it uses no processor time, or for so long: it may still work on requests that were cut."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            before = processor_seconds(self.pid)
            time.sleep(_IDLE_PROBE_SECONDS)
            if processor_seconds(self.pid) - before <= _IDLE_SHARE * _IDLE_PROBE_SECONDS:
                return

    def pause(self) -> None:
        os.killpg(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.killpg(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it: a server that was asked to and does not is killed."""
        if self._process.poll() is None:
            self.go_on()
            self._process.terminate()
            try:
                self._process.wait(timeout=STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(self.pid, signal.SIGKILL)
                self._process.wait()

    def last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return " / ".join(lines[-LOG_LINES:])

    def _wait_until_ready(self) -> None:
        limit = time.monotonic() + START_SECONDS
        while time.monotonic() < limit:
            if self._process.poll() is not None:
                raise AbsentError(f"it ended with {self._process.returncode}: {self.last_words()}")
            if self._answers():
                return
            time.sleep(0.1)
        raise AbsentError(f"it was not ready after {START_SECONDS:.0f} s: {self.last_words()}")

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=5)
        try:
            connection.request("GET", self.variant.kind.ready)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


def program_of(name: str, programs: Mapping[str, str]) -> str:
    """The path of what was named for a server: an interpreter, by default this one, or a program."""
    named = programs.get(name, LLAMA_SERVER if name == LLAMA_SERVER else sys.executable)
    found = shutil.which(named)
    if found is None:
        raise AbsentError(f"there is no program {named}")
    return os.path.abspath(found)

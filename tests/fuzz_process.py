"""Opens a checkpoint in a process of its own, with limits, and says how that ended."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["loaded", "refused", "fault"]

SECONDS = 10
BYTES = 512 * 2**20
_HARD_BYTES = 4 * 2**30  # of address space; between the two, what was allocated is seen and told
_LONGEST_MESSAGE = 2000
_TEXT = "human: Wie heißt\tdu? 🦉<0x0A>|ENDOFTEXT|\n\nadept:"
_CHAT = [
    {"role": "user", "content": " Hi "},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": _TEXT},
]

# What reading files never has to do.
_FORBIDDEN = (
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.putenv",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.spawn",
    "os.system",
    "pickle.find_class",
    "shutil.rmtree",
    "socket.connect",
    "socket.getaddrinfo",
    "subprocess.Popen",
    "webbrowser.open",
)


@dataclass(frozen=True)
class Outcome:
    """``loaded``, ``refused`` with a sentence, or a ``fault`` with what was wrong."""

    kind: Kind
    message: str
    seconds: float
    bytes_allocated: int


def attempt(path: Path, load: Callable[[Path], tuple[Kind, str]], seconds: int = SECONDS) -> Outcome:
    """Call ``load`` on the path in a fork of this process, which must have one thread alone."""
    started = time.perf_counter()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _run_and_exit(path, load, seconds, writing)
    os.close(writing)
    said = _read_until(reading, started + seconds)
    if said is None:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(reading)
    return _outcome(said, status, time.perf_counter() - started)


def _read_until(reading: int, deadline: float) -> bytes | None:
    """All that is written there, or None where that is not done by the deadline."""
    said = b""
    while True:
        # The child is killed from outside a second after it should have ended itself.
        if not select.select([reading], [], [], max(0.0, deadline + 1 - time.perf_counter()))[0]:
            return None
        piece = os.read(reading, 2**16)
        if not piece:
            return said
        said += piece


def _outcome(said: bytes | None, status: int, seconds: float) -> Outcome:
    text = (said or b"").decode("utf-8", "replace")
    if said is None or os.WIFSIGNALED(status):
        by = "time ran out" if said is None else signal.Signals(os.WTERMSIG(status)).name
        return Outcome("fault", f"{by}\n{text}", seconds, 0)
    if os.WEXITSTATUS(status):
        return Outcome("fault", f"ended with {os.WEXITSTATUS(status)}: {text}", seconds, 0)
    told: dict[str, Any] = json.loads(text.splitlines()[-1])
    outcome = Outcome(told["kind"], told["message"], seconds, told["bytes_allocated"])
    if outcome.bytes_allocated > BYTES:
        return Outcome(
            "fault",
            f"allocated {outcome.bytes_allocated} bytes: {outcome.message}",
            seconds,
            outcome.bytes_allocated,
        )
    return outcome


def _run_and_exit(path: Path, load: Callable[[Path], tuple[Kind, str]], seconds: int, writing: int) -> None:
    """In the child: never returns."""
    try:
        devnull = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(devnull, descriptor)
        before = _address_space()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (before + _HARD_BYTES,) * 2)
        faulthandler.enable(file=writing)
        faulthandler.register(signal.SIGALRM, file=writing, chain=True)  # where it hangs, and then its end
        signal.alarm(seconds)
        forbidden: list[str] = []
        sys.addaudithook(lambda event, arguments: _note(event, arguments, forbidden))
        kind, message = load(path)
        if forbidden:
            kind, message = "fault", f"did {', '.join(sorted(set(forbidden)))}"
        told = {"kind": kind, "message": message, "bytes_allocated": _address_space(peak=True) - before}
        os.write(writing, b"\n" + json.dumps(told).encode())
    except BaseException:  # noqa: BLE001 (whatever it was, this process must end here)
        os.write(writing, traceback.format_exc().encode())
        os._exit(1)
    os._exit(0)


def _note(event: str, arguments: tuple[Any, ...], forbidden: list[str]) -> None:
    # Modules are executed when they are imported; code that was made of a text has no file. What jinja has
    # made of a chat template is run in its sandbox.
    name = getattr(arguments[0], "co_filename", "") if event == "exec" else ""
    is_text = event == "exec" and name not in ("<template>", "<unknown>") and not os.path.exists(name)
    if event in _FORBIDDEN or is_text:
        forbidden.append(event)


def load_checkpoint(path: Path) -> tuple[Kind, str]:
    """What a user would do first; only errors of this package's own are refusals."""
    from adept_fast import Runtime
    from adept_fast.checkpoint import open_checkpoint
    from adept_fast.commands.errors import one_line
    from adept_fast.engine.sequence import GenerationError

    try:
        checkpoint = open_checkpoint(path)
        tokenizer = checkpoint.tokenizer
        tokenizer.decode(tokenizer.encode(_TEXT))
        tokenizer.apply_chat_template(_CHAT, add_generation_prompt=True)
        runtime = Runtime.load(checkpoint, device="cpu", max_seq_len=16, max_batch_size=2, progress=False)
        runtime.generate("Hi", max_new_tokens=4)
    except GenerationError as error:  # weights of any size may overflow
        return "loaded", str(error)
    except Exception as error:  # noqa: BLE001
        if not type(error).__module__.startswith("adept_fast."):
            return "fault", traceback.format_exc()
        message = one_line(error)
        if len(message) > _LONGEST_MESSAGE or "MemoryError" in message:
            return "fault", f"says {len(message)} characters: {message:.300}"
        return "refused", f"{type(error).__name__}: {message}"
    return "loaded", ""


def _address_space(peak: bool = False) -> int:
    """Bytes of it that this process has, or had at most."""
    field = "VmPeak:" if peak else "VmSize:"
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status says nothing about address space")

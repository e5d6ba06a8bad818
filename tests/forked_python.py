"""Runs what an interpreter would, in a fork of a process that has torch imported.

``python`` of own_process.py is how tests use it. As a program it is both ends: ``ADDRESS -c PROGRAM`` asks
for a process, and ``ADDRESS --serve`` forks them.
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import select
import signal
import socket
import sys
import types
from typing import Any


def main() -> None:
    address, *arguments = sys.argv[1:]
    if arguments == ["--serve"]:
        execute(serve(address))
    else:
        end_as(request(address, arguments))


def request(address: str, arguments: list[str]) -> int:
    """Have the arguments run on the streams of this process; how that ended, as a signal below 0."""
    told = {"arguments": arguments, "environment": dict(os.environ), "directory": os.getcwd()}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [b"\0"], [0, 1, 2])
        connection.sendall(json.dumps(told).encode() + b"\n")
        with connection.makefile() as answers:
            return int(answers.readline())


def end_as(code: int) -> None:
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def serve(address: str) -> dict[str, Any]:
    """Return in a fork for each request; end when stdin does, which is the other end's life."""
    import jinja2
    import numpy
    import safetensors.torch
    import sentencepiece
    import torch
    import tqdm

    del jinja2, numpy, safetensors, sentencepiece, torch, tqdm
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        os.write(1, b"ready\n")
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while listener in select.select([listener, 0], [], [])[0]:
            connection, _ = listener.accept()
            with connection:
                if os.fork() == 0:
                    listener.close()
                    return run_beside(connection)
    os.unlink(address)
    os.rmdir(os.path.dirname(address))
    os._exit(0)


def run_beside(connection: socket.socket) -> dict[str, Any]:
    """Return in a child that has the streams of who asks; this process tells how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    with connection.makefile() as reading:
        told: dict[str, Any] = json.loads(reading.readline())
    child = os.fork()
    if child:
        for stream in streams:
            os.close(stream)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        connection.sendall(f"{code}\n".encode())
        os._exit(0)
    connection.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    return told


def execute(told: dict[str, Any]) -> None:
    """What an interpreter does with ``-c``, ``-m`` or a file."""
    os.environ.clear()
    os.environ.update(told["environment"])
    os.chdir(told["directory"])
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    kind, *rest = told["arguments"]
    first = {"-c": "", "-m": os.getcwd()}.get(kind, os.path.dirname(kind))
    found = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [first, *filter(None, found), *sys.path[1:]]
    if kind == "-c":
        sys.argv = [kind, *rest[1:]]
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(sys.modules["__main__"]))  # noqa: S102
    elif kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [kind, *rest]
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    main()

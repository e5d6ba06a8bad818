"""Signals that end a process, as exceptions, so that unfinished work is cleaned up."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def ended_by_exceptions() -> Iterator[None]:
    """Within the block, SIGTERM and SIGHUP raise SystemExit with the exit codes of a shell: 143, 129.

    A signal that is ignored, as under nohup, or that has another handler stays so.
    """
    replaced = []
    try:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) is signal.SIG_DFL:
                    signal.signal(number, _end)
                    replaced.append(number)
        yield
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)

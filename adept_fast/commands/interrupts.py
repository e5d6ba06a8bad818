"""Ctrl-C while modules are imported."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

INTERRUPTED = 130  # the exit status after Ctrl-C: 128 and the number of SIGINT, as in a shell


@contextlib.contextmanager
def interrupts_exit() -> Iterator[None]:
    """Within the block, Ctrl-C ends the process at once with exit status 130.

    While they are imported, torch and numpy may catch a KeyboardInterrupt or replace it by another error. An
    earlier handler stays: nohup and the background jobs of a shell ignore SIGINT.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)

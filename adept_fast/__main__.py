"""``python -m adept_fast`` and the script ``adept-fast``: the program, from its start to its exit."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line and exit. Ctrl-C at any moment is exit status 130 without a traceback."""
    try:
        _run()
    except KeyboardInterrupt:
        os._exit(130)  # an orderly exit could fail: modules may be imported in part


def _run() -> None:
    import gc
    import signal

    from adept_fast.commands.interrupts import interrupts_exit

    gc.disable()  # until all modules are imported; ``commands.cli`` enables it
    with interrupts_exit():
        _fill_closed_descriptors()
        from adept_fast.commands.cli import main as command
    try:
        command(prog_name="adept-fast")
    finally:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # all work is done


def _fill_closed_descriptors() -> None:
    """Open the null device for each standard stream that is closed: the next file that is opened would get
    its descriptor, and what is printed. ``sys.stdin`` and ``sys.stdout`` stay None, for commands to check."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest that is free
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (open to the end)


if __name__ == "__main__":
    main()

"""``python -m adept_fast`` and the script ``adept-fast``: the program, from its start to its exit."""

from __future__ import annotations

import os
import sys

_INTERRUPTED = 130  # as commands.errors has it, which is not imported yet


def main() -> None:
    """Run the command line and exit. Ctrl-C at any moment is exit status 130 without a traceback."""
    try:
        _run()
    except KeyboardInterrupt:
        os._exit(_INTERRUPTED)  # what is half imported is not fit for an orderly end


def _run() -> None:
    import signal

    # A caller that wants Ctrl-C ignored, as nohup and a shell's background jobs do, has set another handler.
    catches = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if catches:
        # While torch and numpy are imported, they may catch a KeyboardInterrupt, or make another error of it.
        signal.signal(signal.SIGINT, lambda *_: os._exit(_INTERRUPTED))
    _fill_closed_descriptors()
    from adept_fast.commands.errors import OneLineErrors, failing

    command: OneLineErrors
    try:
        import torch  # noqa: F401

        if catches:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        from adept_fast.commands.cli import main as group

        command = group
    except (ValueError, OSError) as error:  # such as of ADEPT_FAST_CPU, which is read at import
        command = failing(error)
    try:
        command(prog_name="adept-fast")
    finally:
        if catches:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # what was to be done is done


def _fill_closed_descriptors() -> None:
    """Put the null device where a standard stream is closed, or the next file to be opened would be taken for
    it by whatever prints. ``sys.stdin`` and ``sys.stdout`` stay None, so that commands can tell."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest that is free
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (open to the end)


if __name__ == "__main__":
    main()

"""The processes of the ranks: children of the first rank's, or those that torchrun has started."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import distributed

import adept_fast
from adept_fast.arguments import ParameterError

_PACKAGES = Path(adept_fast.__file__).resolve().parents[1]
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl


@dataclass(frozen=True)
class Launched:
    """This process as torchrun started it."""

    rank: int
    count: int


def launched() -> Launched | None:
    """The rank of this process under torchrun; None if it was started otherwise."""
    if not distributed.is_available() or not distributed.is_torchelastic_launched():
        return None
    return Launched(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


def check_launch(found: Launched, count: int, environment: Mapping[str, str] = os.environ) -> None:
    """Raises ParameterError unless torchrun has started ``count`` ranks, on this machine."""
    if found.count != count:
        raise ParameterError(
            f"tensor_parallel is {count}; expected {found.count}, the ranks that torchrun has started"
        )
    if int(environment.get("LOCAL_WORLD_SIZE", count)) != count:
        raise ParameterError(
            f"tensor_parallel is {count}, on several machines; expected all ranks on one, which share memory"
        )


def announce(directory: Path) -> None:
    """Under torchrun, tell the other ranks where to come."""
    _store().set(_KEY, str(directory))


def announced() -> Path:
    """Where the first rank awaits this one; waits for it."""
    return Path(_store().get(_KEY).decode())


_KEY = "adept-fast meeting"


def _store() -> Any:
    untyped: Any = distributed
    store, _, _ = next(untyped.rendezvous("env://"))
    return store


def start_children(directory: Path, count: int) -> dict[int, subprocess.Popen[bytes]]:
    """Start the processes of all ranks but the first; rank → process."""
    path = os.pathsep.join(filter(None, (str(_PACKAGES), os.environ.get("PYTHONPATH"))))
    return {
        rank: subprocess.Popen(
            [sys.executable, "-m", "adept_fast.engine.ranks", str(directory), str(rank), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": path},
        )
        for rank in range(1, count)
    }


def end_with_parent(parent: int) -> None:
    """Have a stopped process go on when its parent ends, where the system can: it then ends too."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGCONT)
    if os.getppid() != parent:  # it has ended before
        os._exit(1)

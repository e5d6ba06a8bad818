"""The result file of a benchmark: figures, the run and the machine that they belong to.

A result file is JSON, ``benchmarks/results/<device>/<benchmark>.json``, with the keys:

``benchmark``, ``command``, ``date``, ``commit``, ``uncommitted_changes``
    the run and its code
``device``, ``machine``, ``threads``, ``versions``
    the machine and the software
``copy_bandwidth_bytes_per_second``
    of a GPU: bytes that a copy reads and writes; no limit for kernels that only read
``samples``
    of each job, as requested
``changes``
    added by hand if there were uncommitted changes: a description. Without it such a file is no result
``measured``
    name → figures. A figure is ``{"median", "p10", "p90"}``; other values are facts, not figures.

and further keys of each benchmark. ``check_report`` checks a report.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adept_fast import __version__
from adept_fast.memory.bandwidth import measure_copy_bandwidth
from benchmarks.machine import describe_machine, device_name

NEEDED = (
    "benchmark",
    "command",
    "date",
    "commit",
    "uncommitted_changes",
    "device",
    "machine",
    "threads",
    "versions",
    "samples",
    "measured",
)
# Without these nobody could repeat a result.
NEVER_EMPTY = ("benchmark", "command", "commit", "device")


def summarise(values: Iterable[float]) -> dict[str, float]:
    """A figure: median, and the tenth and ninetieth percentile."""
    numbers = list(values)
    return {
        "median": float(np.median(numbers)),
        "p10": float(np.percentile(numbers, 10)),
        "p90": float(np.percentile(numbers, 90)),
    }


def summarise_columns(samples: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Samples of several quantities → a figure of each."""
    return {name: summarise(sample[name] for sample in samples) for name in samples[0]}


def describe_run(
    benchmark: str, samples: int, threads: int, device: torch.device | None = None
) -> dict[str, Any]:
    """The keys that every benchmark has but ``measured``; ``device`` is None for a CPU."""
    return {
        "benchmark": benchmark,
        "command": " ".join(["python -m benchmarks", *map(without_folders, sys.argv[1:])]),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": git("rev-parse", "--short", "HEAD"),
        "uncommitted_changes": has_uncommitted_changes(),
        "device": device_name(device),
        "machine": describe_machine(device),
        "threads": threads,
        "versions": {
            "adept-fast": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "samples": samples,
        **_copy_bandwidth(device),
    }


def _copy_bandwidth(device: torch.device | None) -> dict[str, float]:
    """Of a GPU: there it is less than the read bandwidth."""
    if device is None or device.type != "cuda":
        return {}
    return {"copy_bandwidth_bytes_per_second": measure_copy_bandwidth(device)}


def without_folders(argument: str) -> str:
    """An argument of a command; an absolute path at its end loses this machine's folders."""
    before, equals, path = argument.rpartition("=")
    return f"{before}{equals}…/{Path(path).name}" if path.startswith("/") else argument


def has_uncommitted_changes() -> bool:
    """In files that could change a figure: results, and the pages that show them, could not."""
    places = (":(top)", *(f":(top,exclude){page}" for page in ("benchmarks/results", "README.md", "docs")))
    return bool(git("status", "--porcelain", "--untracked-files=no", "--", *places))


def git(*arguments: str) -> str:
    """The output of git in this checkout; empty if this is none."""
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def describe_checkpoint(path: Path) -> dict[str, Any]:
    """Shapes, and how a random checkpoint was made; not its path."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    made = path / "random_checkpoint.json"
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    return {
        **{name: config[name] for name in names},
        "random": json.loads(made.read_text(encoding="utf-8")) if made.is_file() else None,
    }


def check_report(report: Mapping[str, Any]) -> None:
    """Raises ValueError if a report lacks keys, or a figure is in no order."""
    missing = [name for name in NEEDED if name not in report]
    if missing:
        raise ValueError(f"the report lacks {', '.join(missing)}")
    empty = [name for name in NEVER_EMPTY if not report[name]]
    if empty:
        raise ValueError(f"the report's {', '.join(empty)} is empty; expected what names this very run")
    for name, figures in report["measured"].items():
        entries = {key: value for key, value in figures.items() if isinstance(value, dict)} or {name: figures}
        for key, value in entries.items():
            if "median" in value and not value["p10"] <= value["median"] <= value["p90"]:
                raise ValueError(f"{name}: {key} is {value}; expected p10 ≤ median ≤ p90")


def write_report(report: Mapping[str, Any], output: Path | None) -> None:
    """Write it as JSON, None for nowhere; ValueError as from ``check_report``, for what is written."""
    if output is not None:
        check_report(report)
        output.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report, indent=2, ensure_ascii=False)
        output.write_text(text + "\n", encoding="utf-8")


def table(header: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as they have to be; the first is flush left, the others flush right."""
    lines = [header, *rows]
    widths = [max(len(line[at]) for line in lines) for at in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )

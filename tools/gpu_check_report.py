"""What ``gpu_check`` says: a figure of each case, its share of the floor, and one table of them all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gpu_check_cases import TOKENS, Case
from harness import table

# A share of what is expected; rounding the inputs to float16 takes a twentieth of it.
MOST_DIFFERENCE = 1e-2
ALONE = ", no overlap"  # of launches: behind the name of a case


def figure(case: Case, line: Mapping[str, Any], copy_bytes_per_second: float) -> dict[str, Any]:
    """What the result file says of a case, from the line that its timing printed."""
    facts = {"operator": case.operator, "setting": case.setting, "tokens": case.tokens}
    if "failed" in line:
        return {**facts, "failed": line["failed"]}
    floor = line["bytes"] / copy_bytes_per_second
    times = line["seconds"]
    return {
        **facts,
        "bytes": line["bytes"],
        "copies": line["copies"],
        "calls_per_replay": line["calls_per_replay"],
        "difference": line["difference"],
        "seconds": times,
        "floor_seconds": floor,
        # The longest time is the smallest share.
        "share_of_floor": {
            "median": floor / times["median"],
            "p10": floor / times["p90"],
            "p90": floor / times["p10"],
        },
    }


def is_wrong(entry: Mapping[str, Any]) -> bool:
    """Whether an operator failed, or gave something else than plain PyTorch; NaN is something else."""
    off = entry.get("difference")
    return "failed" in entry or (off is not None and not off <= MOST_DIFFERENCE)


def print_of(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each operator and setting, a column for each count of tokens."""
    tokens = sorted(TOKENS)
    alone = sorted({entry["tokens"] for name, entry in measured.items() if name.endswith(ALONE)})
    header = ["µs, share of the floor"]
    header += [f"{count} token{'s' if count > 1 else ''}" for count in tokens]
    header += [f"{count}{ALONE}" for count in alone]
    rows: dict[str, dict[str, str]] = {}
    for name, entry in measured.items():
        column = f"{entry['tokens']}{ALONE if name.endswith(ALONE) else ''}"
        rows.setdefault(entry["setting"], {})[column] = _cell(entry)
    columns = [str(count) for count in tokens] + [f"{count}{ALONE}" for count in alone]
    lines = [[setting, *(cells.get(at, "") for at in columns)] for setting, cells in rows.items()]
    return table(header, lines)


def _cell(entry: Mapping[str, Any]) -> str:
    if "failed" in entry:
        return "failed"
    cell = f"{1e6 * entry['seconds']['median']:.1f} {entry['share_of_floor']['median']:.2f}"
    return f"{cell} wrong" if is_wrong(entry) else cell


def folder_of(device: str) -> str:
    """``NVIDIA H100 80GB HBM3`` → ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")

"""Where step times come from: a result of ``simulate reality``, or of ``gpu-check``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.simulate.replica import Engine
from benchmarks.simulate.step_times import DecodePoint, PrefillPoint, StepTimes

CHUNK_TOKENS = 512  # adept_fast.model.PREFILL_CHUNK, which imports torch; a test compares them
_STEP = re.compile(r"step, (\w+), (\d+)% zeros, (\d+) positions, (\d+) tokens?$")


def read_source(
    path: Path, format: str, zeros: int, prompts: Sequence[tuple[int, float]]
) -> tuple[StepTimes, Engine]:
    """The step times in a result file, and the engine that they belong to.

    Args:
        format, zeros: of the rows of a gpu-check: the weights, and the percentage of inactive neurons.
        prompts: for a gpu-check, which times no prompts: tokens of a prompt and the seconds of reading it.

    Raises ValueError.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
    if "step_times" in report:
        known = {each.name for each in fields(Engine)}
        engine = {name: value for name, value in report.get("engine", {}).items() if name in known}
        return StepTimes.from_json(report["step_times"]), Engine(**engine)
    if report.get("benchmark") == "gpu-check":
        return of_gpu_check(report, path.name, format, zeros, prompts)
    raise ValueError(f"{path.name} has no step times; expected a result of simulate reality, or of gpu-check")


def of_gpu_check(
    report: dict[str, Any], name: str, format: str, zeros: int, prompts: Sequence[tuple[int, float]]
) -> tuple[StepTimes, Engine]:
    """Steps as they were measured; what longer contexts add is extrapolated from attention's kernel.

    A replica has a GPU of its own, and its decode steps have up to as many rows as were measured.
    """
    points = [
        DecodePoint(1, int(match[4]), int(match[3]), values["seconds"]["median"])
        for row, values in report["measured"].items()
        if (match := _STEP.match(row)) and (match[1], int(match[2])) == (format, zeros)
    ]
    if not points:
        known = sorted(
            {f"{match[1]} with {match[2]}%" for row in report["measured"] if (match := _STEP.match(row))}
        )
        raise ValueError(f"{name} has no steps of {format} with {zeros}% zeros; expected {', '.join(known)}")
    if not prompts:
        raise ValueError(f"{name} times no prompts; expected them in --prefill")
    times = StepTimes(
        points,
        prefill_points(prompts),
        position_seconds=_position_seconds(report),
        source=f"{report['device']}, {name}, {format}, {zeros}% zeros",
    )
    engine = Engine(
        slots=times.max_rows,
        step_tokens=CHUNK_TOKENS + times.max_rows,
        chunk_tokens=CHUNK_TOKENS,
        keeps_answers=False,
    )
    return times, engine


def prefill_points(prompts: Sequence[tuple[int, float]]) -> list[PrefillPoint]:
    """Points of chunks, from the seconds of whole prompts: one of several full chunks gives their mean.

    Raises ValueError for a longer prompt that is no multiple of a chunk.
    """
    points = []
    for tokens, seconds in prompts:
        chunks = max(1, tokens // CHUNK_TOKENS)
        if tokens > CHUNK_TOKENS and tokens % CHUNK_TOKENS:
            raise ValueError(f"a prompt has {tokens} tokens; expected a multiple of {CHUNK_TOKENS}, or fewer")
        # What stands before the chunks, on average: attention's time grows in proportion.
        start = (tokens - chunks * min(tokens, CHUNK_TOKENS)) if chunks == 1 else (tokens - CHUNK_TOKENS) // 2
        points.append(PrefillPoint(1, min(tokens, CHUNK_TOKENS), start, seconds / chunks))
    return points


def _position_seconds(report: dict[str, Any]) -> float:
    """What one more position adds to a step: of all layers' attention, from 1 row to 16 rows."""
    rows = {
        int(match[2]): (int(match[1]), values["seconds"]["median"])
        for row, values in report["measured"].items()
        if (match := re.match(r"decode_attention, float16, (\d+) positions, (\d+) tokens?$", row))
    }
    (few, (positions, less)), (many, (_, more)) = min(rows.items()), max(rows.items())
    layers: int = report["step"]["shapes"]["layers"]
    return layers * (more - less) / ((many - few) * positions)

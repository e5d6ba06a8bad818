"""Inputs of batches, and what they give."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adept_fast import Runtime
from adept_fast.server.batch.files import BatchFiles
from adept_fast.server.batch.job import BatchJob
from adept_fast.server.batch.line_runner import LineRunner
from adept_fast.server.settings import Settings

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PLACEMENT = {"device": "cpu", "max_seq_len": "256"}
QUESTION = "human: What is the capital of Peru?\n\nadept:"


def request(custom_id: str, body: Any, url: str = COMPLETIONS, **others: Any) -> dict[str, Any]:
    """A line of OpenAI's batches."""
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body, **others}


def write_lines(path: Path, lines: Sequence[Any]) -> Path:
    """Write an input; bytes are a line as they are."""
    contents = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"".join(content + b"\n" for content in contents))
    return path


def opened(folder: Path, facts: dict[str, str] | None = None, seed: int = 0) -> BatchJob:
    """The batch from ``in.jsonl`` to ``out.jsonl`` of a folder."""
    files = BatchFiles.checked(folder / "in.jsonl", folder / "out.jsonl")
    return BatchJob(files, facts or {}, seed=seed, model_name="demo")


def answered(
    runtime: Runtime,
    folder: Path,
    lines: Sequence[Any],
    seed: int = 0,
    before_each: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """The lines of the output, parsed."""
    write_lines(folder / "in.jsonl", lines)
    with opened(folder, seed=seed) as job:
        job.begin(PLACEMENT)
        job.refuse()
        for entry in LineRunner(runtime, Settings("demo"), job.origin).run(job.pending()):
            before_each()
            job.add(entry.index, entry.answer)
        job.finish()
    return output_of(folder)


def output_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out.jsonl").read_bytes().splitlines()]

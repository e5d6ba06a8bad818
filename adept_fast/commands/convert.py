"""``adept-fast convert``: between Hugging Face directories, Adept's release and packed weights."""

from __future__ import annotations

import sys
from typing import Any

import click

from adept_fast.checkpoint import WEIGHT_DTYPES
from adept_fast.checkpoint.convert import ConversionReport
from adept_fast.checkpoint.convert import convert as convert_checkpoint
from adept_fast.commands.termination import ended_by_exceptions
from adept_fast.system.short_text import printable


def run(options: dict[str, Any]) -> None:
    with ended_by_exceptions():
        report = convert_checkpoint(
            options["source"],
            options["destination"],
            revision=options["revision"],
            to=options["to"],
            dtype=WEIGHT_DTYPES[options["dtype"]] if options["dtype"] else None,
            weights=options["weights"],
            layout=options["layout"],
            max_shard_bytes=options["shard_size"],
            mmap=options["mmap"],
            progress=not options["quiet"],
        )
    if not options["quiet"]:
        click.echo(_as_text(report), file=sys.stderr)


def _as_text(report: ConversionReport) -> str:
    saved = report.saved
    lines = [
        f"{report.source} ({report.source_format}) → {saved.path} ({report.format})",
        *(f"  {size:>14,}  {name}" for name, size in saved.files.items()),
        f"{saved.tensors} tensors, {saved.total_bytes:,} bytes; tokenizer: {saved.tokenizer_check}",
        *(f"note: {note}" for note in saved.notes),
    ]
    return "\n".join(map(printable, lines))

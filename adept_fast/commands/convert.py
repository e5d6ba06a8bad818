"""``adept-fast convert``: between Hugging Face directories, Adept's release and packed weights."""

from __future__ import annotations

import re
import sys

import click

from adept_fast.checkpoint import WEIGHT_DTYPES
from adept_fast.checkpoint.convert import FORMATS, ConversionReport, Format
from adept_fast.checkpoint.convert import convert as convert_checkpoint
from adept_fast.checkpoint.native import LAYOUTS
from adept_fast.commands.errors import OneLineErrors, printable
from adept_fast.commands.options import mmap_option, revision_option
from adept_fast.commands.termination import ended_by_exceptions
from adept_fast.quantization.formats import NAMES

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([KMG]I?B)?", re.IGNORECASE)


def _parse_size(_context: click.Context, _parameter: click.Parameter, text: str) -> int:
    """A number of bytes, with or without a unit."""
    match = _SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * _UNITS[(match[2] or "").upper()]) if match else 0
    if size < 1:
        raise click.BadParameter(f"{text!r} is no size; expected one like 5GB, 500MiB or 1000000")
    return size


@click.command(cls=OneLineErrors)
@click.argument("source")
@click.argument("destination", type=click.Path())
@revision_option
@click.option(
    "--to",
    type=click.Choice(FORMATS),
    help="The format to write. [default: native with --weights, else the other one]",
)
@click.option(
    "--weights",
    type=click.Choice(list(NAMES)),
    help="Pack the weights in 8 or 4 bits, for the native format.",
)
@click.option(
    "--layout",
    type=click.Choice(list(LAYOUTS)),
    help="Of packed weights: row_major for every device, cpu_tiled for a CPU, which maps it without a copy.  "
    "[default: row_major]",
)
@click.option(
    "--dtype", type=click.Choice(list(WEIGHT_DTYPES)), help="Convert the weights. [default: as stored]"
)
@click.option(
    "--shard-size",
    callback=_parse_size,
    metavar="SIZE",
    default="5GB",
    show_default=True,
    help="The largest size of a Hugging Face weight file.",
)
@mmap_option
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def convert(
    source: str,
    destination: str,
    revision: str | None,
    to: Format | None,
    weights: str | None,
    layout: str | None,
    dtype: str | None,
    shard_size: int,
    mmap: bool,
    quiet: bool,
) -> None:
    """Write the checkpoint SOURCE ("demo", a path, or owner/name on the Hugging Face hub) to DESTINATION.

    DESTINATION appears when it is complete; it must not exist yet, or be an empty directory. Where this is
    interrupted or terminated nothing is left, and what a killed one left is removed by the next.
    """
    with ended_by_exceptions():
        report = convert_checkpoint(
            source,
            destination,
            revision=revision,
            to=to,
            dtype=WEIGHT_DTYPES[dtype] if dtype else None,
            weights=weights,
            layout=layout,
            max_shard_bytes=shard_size,
            mmap=mmap,
            progress=not quiet,
        )
    if not quiet:
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

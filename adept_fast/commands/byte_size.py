"""Sizes of memory and files as people write them."""

from __future__ import annotations

import re

import click

_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*(?:([kmgt])(i)?b|b)?", re.ASCII)


def byte_size(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    """The callback of an option: ``24GB``, ``23.5 GiB`` or a number of bytes, at least one."""
    if value is None:
        return None
    found = _SIZE.fullmatch(value.strip().lower())
    unit = (1024 if found[3] else 1000) ** " kmgt".index(found[2] or " ") if found else 0
    size = int(float(found[1]) * unit) if found else 0
    if size < 1:
        raise click.BadParameter(
            f"{value!r} is not a size; expected a number with a unit, such as 24GB or 500MiB"
        )
    return size

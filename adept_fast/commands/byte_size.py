"""Sizes of memory as people write them."""

from __future__ import annotations

import re

import click

_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", start=1)}
_UNITS |= {f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", start=1)}


def byte_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """The callback of an option: ``24GB``, ``23.5 GiB`` or a number of bytes, at least one."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([a-z]*)", value.strip().lower(), re.ASCII)
    unit = _UNITS.get(found[2]) if found else None
    size = int(float(found[1]) * unit) if found and unit else 0
    if size < 1:
        raise click.BadParameter(
            f"{value!r} is no size; expected a number with a unit, such as 24GB or 22GiB"
        )
    return size

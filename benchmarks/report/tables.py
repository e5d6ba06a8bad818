"""How the pages show figures: cells, tables in Markdown, and lines that are not too long."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

WIDTH = 118
NO_FIGURE = "–"


def wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def figure(values: dict[str, float] | None, digits: int, factor: float = 1.0) -> str:
    """``26.2 (25.3 to 28.2)``."""
    if values is None:
        return NO_FIGURE
    median, low, high = (f"{values[key] * factor:.{digits}f}" for key in ("median", "p10", "p90"))
    return f"{median} ({low} to {high})"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in line)}|" for line in lines
    ).replace(" --- ", "---")

"""Sizes in messages: in decimal units, and with enough digits to compare those that stand side by side."""

from __future__ import annotations

_MIN_DIGITS = 3
_MAX_DIGITS = 16  # of a float


def format_bytes(count: int, digits: int = _MIN_DIGITS) -> str:
    """``16.6 GB``: decimal units, three digits by default."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000 - 0.5 * 10.0 ** (3 - digits):
            return f"{size:.{digits}g} {unit}"
        size /= 1000
    return f"{size:.{max(digits, 4)}g} TB"


def format_together(*counts: int) -> tuple[str, ...]:
    """As ``format_bytes``, with the minimum of digits that distinguishes those that differ."""
    for digits in range(_MIN_DIGITS, _MAX_DIGITS):
        texts = tuple(format_bytes(count, digits) for count in counts)
        if len(set(texts)) == len(set(counts)):
            return texts
    return tuple(f"{count} B" for count in counts)

"""The tables that ``gpu-check`` prints last: figures, and the lower bound's share of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.gpu_check.programs import Case
from benchmarks.result_file import table


def print_of(report: Mapping[str, Any]) -> str:
    """The tables of a report, as many as it has."""
    rows = {
        name: row for taken in report.get("decode", {}).values() for name, row in taken["measured"].items()
    }
    return "\n\n".join(filter(None, [operator_table(report["measured"]), decode_table(rows)])) or "no figures"


def operator_table(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each operator and setting, a column for each number of tokens."""
    cases = {Case.of(entry): entry for entry in measured.values()}
    tokens = sorted({case.tokens for case in cases})
    rows: dict[str, dict[int, str]] = {}
    for case, entry in cases.items():
        rows.setdefault(case.setting, {})[case.tokens] = _cell(entry)
    header = ["µs, share of the bound", *(f"{count} token{'s' if count > 1 else ''}" for count in tokens)]
    lines = [[setting, *(cells.get(count, "") for count in tokens)] for setting, cells in rows.items()]
    return table(header, lines) if lines else ""


def decode_table(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each variant and setting."""
    header = ["decode step", "tokens/s", "ms", "share of the bound"]
    lines = []
    for name, row in measured.items():
        figures = {
            "tokens_per_second": ".1f",
            "milliseconds_per_step": ".2f",
            "share_of_bandwidth": ".2f",
        }
        cells = [format(row[key]["median"], form) if key in row else "-" for key, form in figures.items()]
        lines.append([name, *cells])
    return table(header, lines) if lines else ""


def _cell(entry: Mapping[str, Any]) -> str:
    for word in ("failed", "skipped"):
        if word in entry:
            return word
    return f"{1e6 * entry['seconds']['median']:.1f} {entry['share']:.2f}"

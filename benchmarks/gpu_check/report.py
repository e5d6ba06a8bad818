"""The tables that ``gpu-check`` prints last: figures, and the lower bound's share of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.cases.layouts import layouts_table
from benchmarks.gpu_check.programs import Case
from benchmarks.result_file import table


def print_of(report: Mapping[str, Any]) -> str:
    """The tables of a report, as many as it has."""
    tables = [
        operator_table(report["measured"]),
        decode_table(report.get("decode", {})),
        prefill_table(report.get("prefill", {})),
        *(layouts_table(found["measured"]) for found in report.get("layouts", {}).values()),
    ]
    return "\n\n".join(filter(None, tables)) or "no figures"


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


# Figure → its format.
DECODE = {"tokens_per_second": ".1f", "milliseconds_per_step": ".2f", "share_of_bandwidth": ".2f"}
PREFILL = {"time_to_first_token_milliseconds": ".1f", "share_of_gemm_rate": ".2f"}


def decode_table(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each variant and setting."""
    rows = [
        [name, *_figures(row, DECODE)]
        for report in reports.values()
        for name, row in report["measured"].items()
    ]
    return table(["decode step", "tokens/s", "ms", "share of the bound"], rows) if rows else ""


def prefill_table(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each variant and length."""
    rows = [
        [name, str(report["layers"]), *_figures(row, PREFILL)]
        for report in reports.values()
        for name, row in report["measured"].items()
    ]
    header = ["prompt", "layers", "ms to the first token", "share of a GEMM's rate"]
    return table(header, rows) if rows else ""


def _figures(row: Mapping[str, Any], formats: Mapping[str, str]) -> list[str]:
    return [format(row[key]["median"], form) if key in row else "-" for key, form in formats.items()]


def _cell(entry: Mapping[str, Any]) -> str:
    for word in ("failed", "skipped"):
        if word in entry:
            return word
    return f"{1e6 * entry['seconds']['median']:.1f} {entry['share']:.2f}"

"""The tables of simulations: how far they are from real servers, what fleets serve, and their cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.report.tables import figure, markdown

SAMPLES = "which simulated it"  # in place of the medians of a measurement
Report = dict[str, Any]
COMPARED = (
    ("tokens/s", "tokens_per_second", 0, 1.0),
    ("first token, ms", "time_to_first_token_seconds_p50", 0, 1e3),
    ("end to end, s", "end_to_end_seconds_p50", 2, 1.0),
)


def reality(reports: Sequence[Report]) -> str:
    """Each figure as measured and as simulated, and by how much the simulation is off."""
    rows = [
        [
            name,
            *(
                cell
                for _, key, digits, factor in COMPARED
                for cell in (
                    figure(values[key], digits, factor),
                    f"{values[f'simulated_{key}']['median'] * factor:.{digits}f}",
                    f"{100 * (values[f'ratio_of_{key}']['median'] - 1):+.0f} %".replace("-", "−"),
                )
            ),
        ]
        for report in reports
        for name, values in report["measured"].items()
    ]
    heads = [head for said, *_ in COMPARED for head in (said, "simulated", "off by")]
    return markdown(["", *heads], rows)


def capacity(reports: Sequence[Report]) -> str:
    """What numbers of replicas serve within the goal, and how."""
    rows = [
        [
            size,
            f"{values['conversations_per_second']:.2f}",
            f"{values['answers_per_second']:.1f}",
            f"{values['tokens_per_second']:.0f}",
            f"{values['rows']:.1f}",
            f"{1e3 * values['time_to_first_token_seconds_p50']:.0f}",
            f"{1e3 * values['time_to_first_token_seconds_p99']:.0f}",
            f"{1e3 * values['seconds_between_tokens_p50']:.1f}",
            f"{values['end_to_end_seconds_p50']:.1f}",
            f"{values['cached_share']:.0%}",
        ]
        for report in reports
        for size, values in report["simulated"].items()
    ]
    heads = ["replicas", "conversations/s", "answers/s", "tokens/s", "rows a step", "first token, ms", "p99"]
    return markdown([*heads, "between tokens, ms", "end to end, s", "cached"], rows)


def fleets(reports: Sequence[Report]) -> str:
    """The replicas that so many users need, and their cost."""
    rows = [
        [
            f"{each['users']:,.0f}",
            f"{each['replicas']} + {each['spare']}",
            "simulated" if each["is_simulated"] else "extrapolated",
            f"{each['dollars_a_day']:,.0f}",
            f"{each['dollars_a_day_scaled']:,.0f}",
            f"{each['dollars_per_million_tokens']:.2f}",
            f"{each['dollars_per_million_tokens_scaled']:.2f}",
        ]
        for report in reports
        for each in report["fleets"]
    ]
    heads = ["users a day", "GPUs + spare", "", "$ a day", "that follow the hour"]
    return markdown([*heads, "$ a million tokens", "that follow the hour"], rows)

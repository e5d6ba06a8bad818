"""Counts of outcomes from pytest's JUnit report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

_ORDER = ("skipped", "passed", "failed")


@dataclass
class Outcomes:
    """Test names by outcome; a test of several parts fails with any of them, and passes if any passes."""

    passed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # with the first line of the first error

    @property
    def run(self) -> int:
        return len(self.passed) + len(self.failed)


def read_report(path: Path) -> Outcomes:
    """The outcomes of a report; an error in a fixture or at import counts as a failure of that name."""
    states: dict[str, str] = {}
    errors: dict[str, str] = {}
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        name = "::".join(
            part for part in (case.get("classname", "").split(".")[-1], case.get("name")) if part
        )
        broken = case.find("failure")
        broken = case.find("error") if broken is None else broken
        state = "passed" if case.find("skipped") is None else "skipped"
        if broken is not None:
            state = "failed"
            lines = (broken.get("message") or broken.text or "").strip().splitlines()
            errors.setdefault(name, lines[0] if lines else "")
        states[name] = max(state, states.get(name, "skipped"), key=_ORDER.index)
    outcomes = Outcomes(failed=errors)
    for name, state in states.items():
        if state != "failed":
            getattr(outcomes, state).append(name)
    return outcomes

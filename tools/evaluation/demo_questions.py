"""The questions beside the shipped checkpoint (tools/train_demo.py writes them) as a data set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import datasets

import adept_fast.integrations.lm_eval  # noqa: F401 (so that lm_eval knows the model adept-fast)
from adept_fast.checkpoint import demo_path

_EVERY = 25  # of some 7700


def load(**_settings: Any) -> dict[str, datasets.Dataset]:
    lines = (demo_path() / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines[::_EVERY]])}


def score(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Right if the answer is the expected one, word for word."""
    return {"acc": float(results[0].strip() == doc["answer"])}

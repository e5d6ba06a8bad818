"""On a GPU too, a sequence has the same bits alone and in company, whatever all settings."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from company import check_company

from adept_fast import Runtime

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="there is no GPU that this torch can use"
)

FORMATS = ("float32", "float16", "bfloat16", "int8", "fp8", "int4-g128", "int4-g32")
SEQUENCES = 72  # of each format, 504 together


@pytest.mark.parametrize("fmt", FORMATS)
def test_sequences_are_what_they_are_alone(fmt: str) -> None:
    form: dict[str, Any] = {"dtype": fmt} if "float" in fmt else {"weights": fmt}
    many, one = (
        Runtime.load("demo", device="cuda", max_batch_size=slots, max_seq_len=300, progress=False, **form)
        for slots in (16, 1)
    )
    check_company(many, one, SEQUENCES, random.Random(fmt))

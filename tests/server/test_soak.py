"""Half a minute of many clients; ``make soak`` takes ten."""

from __future__ import annotations

import asyncio

import pytest
from soak import soak


@pytest.mark.slow
def test_every_answer_is_the_one_that_it_gets_alone() -> None:
    counts = asyncio.run(soak(seconds=30, clients=64))
    assert counts.wrong == []
    assert min(counts.answered, counts.streamed, counts.left, counts.nonsense, counts.cached_tokens) > 20

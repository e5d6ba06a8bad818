"""The emulated operators with every access checked for races."""

from __future__ import annotations

import pytest
import sanitized
from cuda_on_cpu import build


@pytest.mark.skipif(sanitized.IN_SUCH_A_RUN, reason="this is that run")
def test_no_thread_uses_what_another_may_be_writing() -> None:
    try:
        backends = sanitized.available("races")
        result = sanitized.run("races", backends, sanitized.selection(backends))
    except build.UnavailableError as error:
        pytest.skip(str(error))
    assert result.passed, result.said

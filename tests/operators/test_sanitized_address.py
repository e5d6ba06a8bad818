"""The operators of a CPU and the emulated ones under AddressSanitizer and UBSan."""

from __future__ import annotations

import pytest
import sanitized
from cuda_on_cpu import build


@pytest.mark.skipif(sanitized.IN_SUCH_A_RUN, reason="this is that run")
def test_every_access_is_of_memory_that_is_there() -> None:
    try:
        backends = sanitized.available("address")
        result = sanitized.run("address", backends, sanitized.selection(backends))
    except build.UnavailableError as error:
        pytest.skip(str(error))
    assert result.passed, result.said

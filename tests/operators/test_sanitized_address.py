"""The operators of a CPU and the emulated ones under AddressSanitizer and UBSan."""

from __future__ import annotations

import os

import pytest
import sanitized
from cuda_on_cpu import build

from adept_fast import extension
from adept_fast.extension import recipe
from adept_fast.extension.loader import find_sources


def test_the_extension_is_loaded_where_it_can_be_built() -> None:
    """Else tests of it would be none, and nothing would say so."""
    csrc = find_sources()
    if csrc is None:
        pytest.skip("the sources of the extension are not here")
    try:
        recipe.check_prerequisites(csrc)
    except recipe.BuildError as error:
        pytest.skip(str(error))
    if os.environ.get("ADEPT_FAST_BUILD") == "0" and not extension.load().loaded:
        pytest.skip("ADEPT_FAST_BUILD is 0")
    assert extension.load().loaded, extension.load().reason


@pytest.mark.skipif(sanitized.IN_SUCH_A_RUN, reason="this is that run")
def test_every_access_is_of_memory_that_is_there() -> None:
    try:
        backends = sanitized.available("address")
        result = sanitized.run("address", backends, sanitized.selection(backends))
    except build.UnavailableError as error:
        pytest.skip(str(error))
    assert result.passed, result.said

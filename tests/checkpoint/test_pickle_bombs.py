"""Small pickles that would take forever, or gigabytes, if they were read as they ask to be."""

from __future__ import annotations

import tracemalloc

import pytest
from pickle_bombs import BOMBS, COUNTED, LARGE, MEBIBYTE, OPCODES, SCALE

from adept_fast.checkpoint import pickle_machine, pickle_reader
from adept_fast.checkpoint.pickle_machine import MAX_TEXT_BYTES
from adept_fast.checkpoint.pickle_reader import Pickled, PickleError, read_pickle
from adept_fast.checkpoint.pickle_values import described


def read(stream: bytes) -> Pickled:
    return read_pickle(stream, {}, {}, lambda identity: None)


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs(bomb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would take forever, or gigabytes; here its memory is counted beside the file's own."""
    monkeypatch.setattr(pickle_reader, "MAX_OPCODES", OPCODES)
    monkeypatch.setattr(pickle_machine, "MAX_OPCODES", OPCODES)
    monkeypatch.setattr(pickle_machine, "MAX_OBJECTS", COUNTED)
    monkeypatch.setattr(pickle_machine, "MAX_TEXT_BYTES", MAX_TEXT_BYTES // SCALE)
    build, refusal = BOMBS[bomb]
    stream = b"\x80\x05" + build()[: LARGE - 3] + b"."
    tracemalloc.start()
    try:
        if refusal is None:
            assert len(described(read(stream).contents)) < 500
        else:
            with pytest.raises(PickleError) as raised:
                read(stream)
            assert refusal in str(raised.value)
            assert len(str(raised.value)) < 500
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * MEBIBYTE / SCALE

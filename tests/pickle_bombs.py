"""Small pickles that would take forever, or gigabytes, and what the reader of pickles says of each."""

from __future__ import annotations

import struct
from collections.abc import Callable

from adept_fast.checkpoint.pickle_machine import MAX_DEPTH, MAX_OBJECTS, MAX_OPCODES

MEBIBYTE = 2**20


def text(encoded: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def doubling(opcode: bytes, levels: int) -> bytes:
    """Each level holds the one below twice, so that all of them have 2**levels leaves."""
    stream = b")q\0"
    for at in range(levels):
        stream += b"h%ch%c%sq%c" % (at, at, opcode, at + 1)
    return stream


SCALE = 16  # that much smaller than they may be, limits and bombs take that much less time
LARGE = MEBIBYTE
OPCODES, COUNTED = MAX_OPCODES // SCALE, MAX_OBJECTS // SCALE
SIX_GIGABYTES = b"\x8a\x08" + struct.pack("<q", 6 * 2**30)
BOMBS: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "nested tuples as a key": (lambda: doubling(b"\x86", 100) + b"}h\x64K\x01s", None),
    "nested tuples in a set": (lambda: doubling(b"\x86", 100) + b"\x8f(h\x64\x90", None),
    "nested tuples in a frozenset": (lambda: doubling(b"\x86", 100) + b"(h\x64\x91", None),
    "nested tuples as a name": (lambda: doubling(b"\x86", 100) + b"h\x64h\x64\x93", "is no text"),
    "nested tuples that are called": (lambda: doubling(b"\x86", 100) + b")R", "is called"),
    "doubled lists": (lambda: b"]q\0" + b"h\0h\0a" * 10_000, None),
    "bytearray of 6 GB": (
        lambda: b"cbuiltins\nbytearray\n\x8a\x08" + struct.pack("<q", 6 << 30) + b"\x85R",
        None,
    ),
    "bytes of 6 GB": (lambda: b"cbuiltins\nbytes\n\x8a\x08" + struct.pack("<q", 6 << 30) + b"\x85R", None),
    "range to list": (lambda: b"cbuiltins\nlist\ncbuiltins\nrange\n\x8a\x05\0\0\0\0\x01\x85R\x85R", None),
    "numpy.zeros": (lambda: b"cnumpy\nzeros\n\x8a\x06\0\0\0\0\0\x01\x85R", None),
    "empty OrderedDicts": (
        lambda: b"ccollections\nOrderedDict\nq\0(" + b"h\0)R" * (LARGE // 4) + b"l",
        f"more than {COUNTED} objects",
    ),
    "empty dicts": (lambda: b"(" + b"}" * LARGE + b"l", f"more than {COUNTED} objects"),
    "dicts of one": (lambda: text(b"a") + b"q\0(" + b"}h\0Ns" * (LARGE // 5), "more than"),
    "keys that are no texts": (lambda: b"}" + b"NNs" * (LARGE // 3), "more than"),
    "calls": (lambda: b"cx\ny\nq\0(" + b"h\0)R" * (LARGE // 4), "more than"),
    "persistent ids": (lambda: b"(" + b"NQ" * (LARGE // 2), "more than"),
    "names": (
        lambda: text(b"a" * 400) + b"q\0" + text(b"b" * 400) + b"q\1" + b"h\0h\1\x93" * (LARGE // 5),
        f"more than {COUNTED} objects",
    ),
    "integers": (lambda: b"(" + b"J\xff\xff\xff\x7f" * (LARGE // 5), f"more than {OPCODES} opcodes"),
    "constants": (lambda: b"(" + b"N" * LARGE, f"more than {OPCODES} opcodes"),
    "DUP": (lambda: b"]" + b"2" * LARGE, f"more than {OPCODES} opcodes"),
    "the memo": (lambda: b"]" + b"\x94" * LARGE, f"more than {OPCODES} opcodes"),
    "entries of the memo far apart": (
        lambda: b"N" + b"".join(b"r" + struct.pack("<I", at) for at in range(0, 2**24, 250)),
        "the memo has no room",
    ),
    "marks": (lambda: b"(" * LARGE, f"more than {MAX_DEPTH} marks"),
    "texts of few characters": (lambda: b"(" + text("Ā".encode()) * (LARGE // 7), "more than"),
    "texts of wide characters": (lambda: b"(" + text(b"a" * 9999 + "😀".encode()) * 100, "bytes of text"),
    "long integers": (lambda: b"(" + (b"\x8a\xff" + b"\x7f" * 255) * (LARGE // 257) + b"l", None),
    "one integer": (lambda: b"\x8b" + struct.pack("<I", LARGE - 99) + b"\x7f" * (LARGE - 99), None),
    "keys that are equal": (
        lambda: text(b"k" * 4096) + b"q\0" + text(b"k" * 4096) + b"q\1}h\0Ns" + b"h\1Ns" * (LARGE // 4),
        f"more than {OPCODES} opcodes",
    ),
    "lists in lists": (lambda: b"]" * 8000 + b"a" * 7999, None),
    "tuples in tuples": (lambda: b")" + b"\x85" * 8000, None),
    "states in states": (lambda: b"cx\ny\nq\0" + b"h\0)R" * 8000 + b"b" * 7999, None),
    "a state that is set again and again": (
        lambda: (
            b"cx\ny\n)R}("
            + b"".join(text(b"%d" % at) + b"N" for at in range(9999))
            + b"uq\0"
            + b"h\0b" * LARGE
        ),
        "",
    ),
}
